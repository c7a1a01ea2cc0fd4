"""What colour does a score get? A ramp for light paper and one for dark, with text that can be read on every step."""

from __future__ import annotations

import itertools

LEVELS = 20
Colour = tuple[int, int, int]
Ramp = tuple[tuple[float, Colour], ...]

# One hue, so that no colour vision is left out. On dark paper the ramp runs the other way, so that a high score stands
# out on both.
LIGHT: Ramp = ((0.0, (243, 245, 248)), (0.5, (122, 173, 214)), (1.0, (8, 54, 104)))
DARK: Ramp = ((0.0, (30, 36, 44)), (0.5, (37, 90, 142)), (1.0, (168, 214, 255)))
_INKS: tuple[Colour, Colour] = (0, 0, 0), (255, 255, 255)


def level(score: float) -> int:
    """Step of the ramp for a score in [0, 1], 0 to LEVELS."""
    return round(min(max(score, 0.0), 1.0) * LEVELS)


def palette(ramp: Ramp) -> list[tuple[str, str]]:
    """(background, text) of every step as CSS colours; text is black or white, whichever has more contrast."""
    steps = []
    for number in range(LEVELS + 1):
        colour = _interpolate(ramp, number / LEVELS)
        ink = max(_INKS, key=lambda ink: contrast(colour, ink))
        steps.append((_css(colour), _css(ink)))
    return steps


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _interpolate(ramp: Ramp, at: float) -> Colour:
    for (left, low), (right, high) in itertools.pairwise(ramp):
        if at <= right:
            share = (at - left) / (right - left)
            red, green, blue = (round(a + share * (b - a)) for a, b in zip(low, high, strict=True))
            return red, green, blue
    return ramp[-1][1]


def _luminance(colour: Colour) -> float:
    red, green, blue = (c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
