"""What `site.yaml` forbids does not happen, whatever the server asks."""

import pytest

from client.permission import Forbidden, allowed_metrics, check_order, check_privacy
from client.site_file import SiteSettings
from dsm_core.config import PrivacyConfig
from strategies.messages import LOSS, NUM_CASES, SECONDS, TrainOrder

METRICS = {NUM_CASES: 3, LOSS: 0.5, SECONDS: 12.0}


def order(share_moments=False):
    return TrainOrder(1, 9, "organs", 1, 9, 1e-3, 5, 0, share_moments)


def settings(tmp_path, **own):
    return SiteSettings(tmp_path, **own)


def test_without_restrictions_everything_known_passes(tmp_path):
    check_order(settings(tmp_path), order(share_moments=True))
    assert allowed_metrics(settings(tmp_path), METRICS) == METRICS


def test_moments_stay_where_the_site_says_so(tmp_path):
    own = settings(tmp_path, leaves=frozenset({"loss"}))
    check_order(own, order(share_moments=False))
    with pytest.raises(Forbidden, match=r"lets no optimiser moments leave; run with server.moments=local"):
        check_order(own, order(share_moments=True))


def test_loss_and_seconds_stay_where_the_site_says_so(tmp_path):
    assert allowed_metrics(settings(tmp_path, leaves=frozenset()), METRICS) == {NUM_CASES: 3}


def test_a_site_with_a_ceiling_trains_privately_and_within_it_or_not_at_all(tmp_path):
    own = settings(tmp_path, epsilon_ceiling=3.0)
    with pytest.raises(Forbidden, match=r"differential privacy only \(epsilon_ceiling 3\); the order asks for none"):
        check_privacy(own, PrivacyConfig())
    with pytest.raises(Forbidden, match=r"allows epsilon up to 3, and the order asks for 8"):
        check_privacy(own, PrivacyConfig(mode="dp_sgd", epsilon=8.0))
    check_privacy(own, PrivacyConfig(mode="dp_sgd", epsilon=3.0))
