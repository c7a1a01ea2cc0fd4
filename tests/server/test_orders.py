"""A command line becomes an order, or is refused before anything starts; a stopped run goes on with its own words."""

import pytest

from dsm_core.config import Config
from server.consortium import ACCEPTED, Consortium, SiteRecord
from server.founding import create_consortium
from server.orders import new_order, resumed_order
from server.resume import remember_config
from strategies.deployment.errors import DeploymentError


@pytest.fixture
def consortium(tmp_path):
    made = create_consortium(Consortium(tmp_path / "c", "demo", ("localhost",), 9443, 9444, 9092, False))
    for name in ("north", "south"):
        made.save_site(SiteRecord(name, ACCEPTED, "ab" * 32))
    return made


@pytest.fixture
def stopped(consortium):
    """Makes the folder of a run that was stopped."""

    def make(name, **settings):
        folder = consortium.folder / "runs" / name
        folder.mkdir(parents=True)
        remember_config(folder, Config(**settings))
        return folder

    return make


def test_an_order_is_filled_in_for_the_accepted_sites(consortium):
    order = new_order(consortium, ["rounds=3", "name=first"], None, 60)
    assert order.sites == 2
    assert order.folder == consortium.folder / "runs" / "first"
    assert {"rounds=3", "sites=2", f"out={consortium.folder / 'runs'}"} <= set(order.overrides)


@pytest.mark.parametrize(
    ("keys", "sites", "reason"),
    [
        ([], 3, "3 sites are wanted and 2 have been accepted"),
        ([], 0, "0 sites are wanted"),
        (["round=3"], None, "round"),
        (["rounds=0"], None, "rounds wants at least 1"),
    ],
)
def test_an_order_that_cannot_be_is_refused_before_anything_starts(consortium, keys, sites, reason):
    with pytest.raises(DeploymentError, match=reason):
        new_order(consortium, keys, sites, 60)


def test_the_folder_of_another_run_is_not_overwritten(consortium, stopped):
    stopped("first")
    with pytest.raises(DeploymentError, match=r"holds another run; .* or go on with it: --resume"):
        new_order(consortium, ["name=first"], None, 60)


def test_the_stopped_run_goes_on_with_its_own_words_and_sites(consortium, stopped):
    folder = stopped("first", rounds=7, sites=2)
    for keys in ([], ["name=first"]):
        order = resumed_order(consortium, keys, None, 60)
        assert (order.folder, order.sites, order.overrides) == (folder, 2, (f"resume={folder}",))
    assert resumed_order(consortium, ["threads=2"], 1, 60).overrides == (f"resume={folder}", "threads=2")


def test_a_site_that_has_left_is_not_waited_for(consortium, stopped):
    stopped("first", sites=5)
    assert resumed_order(consortium, [], None, 60).sites == 2


def test_which_of_several_runs_goes_on_must_be_said(consortium, stopped):
    with pytest.raises(DeploymentError, match=r"0 runs in .* were stopped: none"):
        resumed_order(consortium, [], None, 60)
    for name in ("second", "first"):
        stopped(name)
    with pytest.raises(DeploymentError, match=r"2 runs in .* were stopped: first, second; say which goes on"):
        resumed_order(consortium, [], None, 60)
    assert resumed_order(consortium, ["name=second"], 1, 60).folder.name == "second"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [(["rounds=9"], "leave out rounds"), (["name=third"], "is no folder"), (["round=9"], "round")],
)
def test_what_would_be_another_run_is_refused(consortium, stopped, keys, reason):
    stopped("first")
    with pytest.raises(DeploymentError, match=reason):
        resumed_order(consortium, keys, None, 60)


def test_a_finished_run_does_not_go_on(consortium):
    (consortium.folder / "runs" / "done").mkdir(parents=True)
    with pytest.raises(DeploymentError, match="the run is finished"):
        resumed_order(consortium, ["name=done"], None, 60)
