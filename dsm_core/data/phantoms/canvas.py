"""What fills every voxel of a generated patient: HU and the share of each class, painted from the back to the front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsm_core.data.phantoms.shapes import GRID_MM, Array, Shape, Space

AIR_HU = -1000.0
WHOLE = (slice(None), slice(None), slice(None))


class Canvas:
    """The patient before the scanner.

    Attributes:
        hu: (X, Y, Z) float32; voxels at an edge hold the mixture of both tissues (partial volume).
        coverage: class name -> (X, Y, Z) float32 in [0, 1].
        grain, mottle: fine and coarse texture fields, (X, Y, Z), unit variance.
    """

    def __init__(self, space: Space, names: Sequence[str]) -> None:
        self.space = space
        self.hu: Array = np.full(space.shape, AIR_HU, np.float32)
        self.coverage: dict[str, Array] = {name: np.zeros(space.shape, np.float32) for name in names}
        self.grain = space.noise(4.0)
        self.mottle = space.noise(22.0)

    def paint(self, shape: Shape, hu: float | Array, name: str | None = None, is_part: bool = False) -> None:
        """Cover with a tissue; `is_part` leaves the classes below as they are (a vessel of the liver is liver)."""
        covered = np.clip(np.float32(0.5) - shape.distance / np.float32(GRID_MM), 0, 1)
        hu_there = self.hu[shape.window]
        hu_there += covered * (hu - hu_there)
        if is_part:
            return
        for other, coverage in self.coverage.items():
            share = coverage[shape.window]
            if other == name:
                share += covered * (1 - share)
            elif share.any():
                share *= 1 - covered

    def paint_field(self, distance: Array, hu: float | Array) -> None:
        """Cover with a tissue given as a distance field of the whole grid, below any labelled organ."""
        self.paint(Shape(WHOLE, distance), hu, is_part=True)

    def paint_gas(self, lumen: Shape, level_mm: float) -> None:
        """Fill a hollow organ with gas above a fluid level: the patient lies supine, so gas rises along y."""
        y = self.space.axes[1][lumen.window[1]][None, :, None]
        gas = np.maximum(lumen.distance, (level_mm - y).astype(np.float32))
        self.paint(Shape(lumen.window, gas), -900.0, is_part=True)

    def texture(self, shape: Shape, strength_hu: float) -> Array:
        """Correlated variation of a tissue in the window of a shape."""
        return strength_hu * (self.grain[shape.window] + 0.7 * self.mottle[shape.window])
