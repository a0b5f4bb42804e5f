"""A measured function of two sizes: known on a grid, bilinear in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Side = str | int  # the size of a width, or one that never changes


@dataclass(frozen=True)
class Lookup:
    """Values on a grid of two sizes; bilinear between its points, constant beyond its ends.

    Attributes:
        sides: what the two sizes are of; two different widths, or numbers in the place of one or both.
        grids: for each side, the sizes of the grid, ascending.
        values: whole numbers; a row for each size of the first side, a column for each of the second.
    """

    sides: tuple[Side, Side]
    grids: tuple[tuple[int, ...], tuple[int, ...]]
    values: tuple[tuple[int, ...], ...]

    def table(self, one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> np.ndarray:
        """(sizes of one, sizes of the other), the values rounded to whole numbers.

        Args:
            one: sizes of the first side.
            other: sizes of the second.
        """
        rows, columns = (_shares(grid, sizes) for grid, sizes in zip(self.grids, (one, other), strict=True))
        # 1e-6: a half must be rounded alike, however many sizes are asked for at once
        return np.floor(rows @ np.array(self.values, dtype=float) @ columns.T + 0.5 + 1e-6)


def _shares(grid: Sequence[int], sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(sizes, points of the grid), the share of every point in the value at a size."""
    return np.stack([np.interp(sizes, grid, row) for row in np.eye(len(grid))], axis=1)
