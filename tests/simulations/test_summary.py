"""Means, shares and gains, on numbers worked out by hand: two sites, two organs, one lesion, one class nobody has."""

from __future__ import annotations

import pytest

from simulations.summary import (
    Cell,
    Mean,
    class_summaries,
    foreign_share,
    mean_score,
    methods_of,
    ordered_classes,
    site_gains,
)

KINDS = {"liver": "organ", "aorta": "organ", "liver tumor": "lesion", "kidney cyst": "lesion"}


def cell(method: str, site: str, name: str, status: str, dice: float | None) -> Cell:
    return Cell(method, site, name, status, dice, None, 4)


CELLS = [
    cell("federated", "a", "liver", "local", 0.9),
    cell("federated", "b", "liver", "foreign", 0.8),
    cell("federated", "a", "aorta", "foreign", 0.6),
    cell("federated", "b", "aorta", "local", 0.7),
    cell("federated", "a", "liver tumor", "local", 0.5),
    cell("federated", "b", "liver tumor", "foreign", None),
    cell("federated", "a", "kidney cyst", "unseen", 0.1),
    cell("local", "a", "liver", "local", 0.95),
    cell("local", "a", "aorta", "foreign", 0.0),
    cell("local", "a", "liver tumor", "local", 0.45),
]


def test_mean_leaves_out_cells_without_a_score() -> None:
    assert mean_score(CELLS, "federated", "foreign") == Mean(pytest.approx(0.7), 2)  # type: ignore[arg-type]
    assert mean_score(CELLS, "federated", "foreign", ["liver tumor"]) is None
    assert mean_score(CELLS, "federated", "local", None, "nsd") is None


def test_share_compares_only_classes_with_both() -> None:
    summaries = class_summaries(CELLS, "federated", KINDS)
    assert foreign_share(summaries, "organ") == pytest.approx((0.8 + 0.6) / (0.9 + 0.7))
    assert foreign_share(summaries, "lesion") is None
    assert {s.class_name: s.share for s in summaries}["liver"] == pytest.approx(0.8 / 0.9)


def test_share_of_a_class_that_is_lost_everywhere_is_not_defined() -> None:
    lost = [cell("federated", "a", "liver", "local", 0.0), cell("federated", "b", "liver", "foreign", 0.0)]
    summaries = class_summaries(lost, "federated", KINDS)
    assert foreign_share(summaries) is None
    assert summaries[0].share is None


def test_summary_names_the_labelling_sites() -> None:
    labelled = {s.class_name: s.labelled_at for s in class_summaries(CELLS, "federated", KINDS)}
    assert labelled == {"aorta": ("b",), "liver": ("a",), "kidney cyst": (), "liver tumor": ("a",)}


def test_gain_sets_the_shared_model_beside_the_site_alone() -> None:
    a, b = site_gains(CELLS, "federated", "local", KINDS)
    assert [(g.class_name, g.together, g.alone) for g in a.foreign] == [("aorta", 0.6, 0.0)]
    assert a.own_together == Mean(pytest.approx(0.7), 2)  # type: ignore[arg-type]
    assert a.own_alone == Mean(pytest.approx(0.7), 2)  # type: ignore[arg-type]
    assert [g.class_name for g in a.unseen] == ["kidney cyst"]
    assert [(g.class_name, g.alone) for g in b.foreign] == [("liver", None), ("liver tumor", None)]
    assert (b.found(0.5), b.found(0.8), b.found(0.81)) == (1, 1, 0)
    assert b.own_alone is None


def test_order_is_organs_first_and_the_federated_method_first() -> None:
    assert ordered_classes(CELLS, KINDS) == ["aorta", "liver", "kidney cyst", "liver tumor"]
    assert methods_of([*CELLS, cell("new", "a", "liver", "local", 1.0)]) == ["federated", "local", "new"]
