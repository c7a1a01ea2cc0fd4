"""An audit is read back as it was written, the best bound is found, and a folder without one says what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsm_core.config import PrivacyConfig
from simulations.benchmarks.table import Check
from simulations.privacy_audit import AuditError, Finding, PrivacyAudit, read_audit
from simulations.privacy_audit.inversion import Inversion
from simulations.privacy_audit.page import save_pictures, write_page
from simulations.privacy_audit.results import area_under_curve, write_audit

OPEN = Finding(None, "updates", "any mechanism", 3.7, 0.95, 1e-5, 480, 192, 192, 0.9, 2, 0.5, None)
LOOSE = replace(OPEN, claimed_epsilon=8.0, lower_bound=2.1, noise_multiplier=0.71)
TIGHT = replace(LOOSE, method="gaussian", lower_bound=6.7, guesses=None, correct=None)
FACTS = {
    "command": "python -m simulations.privacy_audit",
    "commit": "0000000",
    "seed": 0,
    "preset": "quick",
    "delta": 1e-5,
    "confidence": 0.95,
    "canaries_a_run": 8,
    "patch": 16,
    "inverted_widths": (48, 96, 16, 16),
    "cpu_seconds": 1.0,
}


@pytest.fixture
def audit(tmp_path):
    """An audit with pictures in its folder."""
    truth = np.random.default_rng(0).random((4, 4, 4))
    private = PrivacyConfig(mode="dp_sgd", epsilon=8.0)
    inversions = [Inversion(PrivacyConfig(), truth, truth, 0.9), Inversion(private, truth, 1 - truth, 0.1)]
    pictures = tuple(save_pictures(tmp_path, inversions))
    checks = (Check.at_most("epsilon 8: gaussian, updates, lower bound", 9.0, 8.0),)
    return PrivacyAudit((OPEN, LOOSE, TIGHT), checks, pictures, FACTS)


def test_audit_is_read_back_as_written(audit, tmp_path):
    write_audit(tmp_path, audit)
    found = read_audit(tmp_path)
    assert (found.rows, found.checks) == (audit.rows, audit.checks)
    assert [item["similarity"] for item in found.inversion] == pytest.approx([1.0, -1.0])
    assert found.facts["commit"] == "0000000"


def test_best_is_the_largest_bound_of_a_claim(audit):
    assert audit.best(8.0) == TIGHT
    assert audit.best(None) == OPEN
    assert audit.best(2.0) is None
    assert audit.of(8.0, method="any mechanism") == [LOOSE]


def test_page_shows_bounds_failed_check_and_pictures_without_network(audit, tmp_path):
    write_audit(tmp_path, audit)
    page = write_page(tmp_path).read_text()
    for wanted in (
        "6.70",
        "of 8 promised",
        '<td class="no">NO</td>',
        "from the unprotected update: correlation 1.00",
        "epsilon 8: correlation -1.00",
    ):
        assert wanted in page
    assert page.count("data:image/png;base64,") == 3
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize("content", [None, "{", "{}", '{"rows": [{"x": 1}], "checks": [], "inversion": []}'])
def test_folder_without_a_readable_audit_says_how_to_make_one(tmp_path, content):
    if content is not None:
        (tmp_path / "audit.json").write_text(content)
    with pytest.raises(AuditError, match=r"audit\.json cannot be read .*python -m simulations\.privacy_audit --out"):
        read_audit(tmp_path)


def test_area_under_the_curve():
    assert area_under_curve([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert area_under_curve([1, 2, 3, 4], [True, False, True, False]) == 0.25
    assert area_under_curve([1, 1, 1], [True, False, True]) == 0.5
    assert area_under_curve([1, 2], [True, True]) == 0.5
