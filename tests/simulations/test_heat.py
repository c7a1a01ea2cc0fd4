"""Heat colours: ordered, and readable on every step."""

from __future__ import annotations

import pytest

from simulations.heat import DARK, LEVELS, LIGHT, Ramp, contrast, level, palette


def rgb(css: str) -> tuple[int, int, int]:
    return int(css[1:3], 16), int(css[3:5], 16), int(css[5:7], 16)


def test_contrast_of_black_on_white_is_21() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


@pytest.mark.parametrize("ramp", [LIGHT, DARK])
def test_text_can_be_read_on_every_step(ramp: Ramp) -> None:
    steps = palette(ramp)
    assert len(steps) == LEVELS + 1
    assert min(contrast(rgb(background), rgb(text)) for background, text in steps) >= 4.5  # WCAG 2.2 AA


@pytest.mark.parametrize(("ramp", "paper"), [(LIGHT, (255, 255, 255)), (DARK, (15, 19, 23))])
def test_a_higher_score_stands_out_more_from_its_paper(ramp: Ramp, paper: tuple[int, int, int]) -> None:
    contrasts = [contrast(rgb(background), paper) for background, _ in palette(ramp)]
    assert contrasts == sorted(contrasts)


def test_level_is_bounded() -> None:
    assert [level(x) for x in (-0.1, 0.0, 0.5, 1.0, 1.2)] == [0, 0, LEVELS // 2, LEVELS, LEVELS]
