"""What an architecture would cost if it were changed in one place, for all places at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from tas.cost import CostTable
from tas.graph import Graph
from tas.space import SearchSpace


class Loads:
    """Costs as shares of their limits; the largest share counts.

    Args:
        graph: of the model.
        space: the candidates.
        limits: by quantity, above 0.
    """

    def __init__(self, graph: Graph, space: SearchSpace, limits: Mapping[str, int]):
        costs = {name: graph.cost(name) for name in limits}
        self.grows = not any(cost.is_measured for cost in costs.values())  # with every size, projections aside
        self._tables = [CostTable(cost, space.widths, space.depths) for cost in costs.values()]
        self._limits = list(limits.values())

    def of(self, choices: np.ndarray) -> np.ndarray:
        """(architectures, choices), candidate indices, to (architectures,); at most 1 fits."""
        return self._largest([table.exact(choices) for table in self._tables])

    def changed(self, choices: np.ndarray) -> np.ndarray:
        """(architectures, choices) to (architectures, choices, candidates): with one choice changed."""
        return self._largest([table.changed(choices) for table in self._tables])

    def _largest(self, costs: list[np.ndarray]) -> np.ndarray:
        return np.max([cost / limit for cost, limit in zip(costs, self._limits, strict=True)], axis=0)


class Moves:
    """Changes of an architecture: of one choice to any open candidate, and of a whole stream to one size.

    Some change nothing, since they lead to what is there.

    Args:
        graph: of the model.
        space: the candidates.
        loads: of the same space.
        is_open: (choices, candidates), which may be chosen; of every choice at least one.
    """

    def __init__(self, graph: Graph, space: SearchSpace, loads: Loads, is_open: np.ndarray):
        self.graph, self.space, self.load, self.is_open = graph, space, loads, is_open
        self._rows, self._columns = np.nonzero(is_open)

    @cached_property
    def _together(self) -> list[tuple[list[int], list[int]]]:
        """For every stream and every size, rows and columns that bring all its widths to it.

        Or just above, where a width has no such candidate; or to its largest.
        """
        moves, order = [], {name: row for row, name in enumerate(self.space.widths)}
        for stream in self.graph.streams:
            sizes = {
                row: {size: column for column, size in enumerate(self.space.widths[name]) if self.is_open[row, column]}
                for name, row in order.items()
                if name in stream
            }
            for size in sorted({size for found in sizes.values() for size in found}):
                columns = [
                    next((column for other, column in found.items() if other >= size), found[max(found)])
                    for found in sizes.values()
                ]
                moves.append((list(sizes), columns))
        return moves

    def __len__(self) -> int:
        return len(self._rows) + len(self._together)

    def made(self, choice: np.ndarray, place: int) -> np.ndarray:
        """(choices,), what the move at this place makes of an architecture."""
        alone = place - len(self._rows)
        rows, columns = self._together[alone] if alone >= 0 else (self._rows[place], self._columns[place])
        choice = choice.copy()
        choice[rows] = columns
        return choice

    def loads(self, choices: np.ndarray) -> np.ndarray:
        """(architectures, choices) to (architectures, moves), the loads of what they lead to."""
        alone = self.load.changed(choices)[:, self._rows, self._columns]
        if not self._together:
            return alone
        trials = np.repeat(choices[:, None], len(self._together), axis=1)
        for place, (rows, columns) in enumerate(self._together):
            trials[:, place, rows] = columns
        together = self.load.of(trials.reshape(-1, choices.shape[1])).reshape(len(choices), -1)
        return np.concatenate([alone, together], axis=1)

    def gains(self, choices: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(architectures, moves), what every move adds to the sum of scores.

        Args:
            choices: (architectures, choices), candidate indices.
            scores: (choices, candidates).
        """
        found = [scores[self._rows, self._columns] - scores[self._rows, choices[:, self._rows]]]
        for rows, columns in self._together:
            found.append((scores[rows, columns] - scores[rows, choices[:, rows]]).sum(1, keepdims=True))
        return np.concatenate(found, axis=1)
