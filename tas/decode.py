"""The most probable architecture under a budget.

Maximising a sum of log-probabilities subject to a cost that is a product of the choices is hard in general. The most
probable architecture of all is taken when it fits. Otherwise several starts (a greedy descent, and coordinate ascent
on score minus multiplier times cost for a range of multipliers) are improved by single changes and exchanges of two;
the tests compare the outcome with enumeration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tas.architecture import Architecture
from tas.budget import Budget
from tas.cheapest import cheapest_choice, stream_moves
from tas.cost import CostTable
from tas.errors import BudgetError, ConfigError
from tas.graph import Graph
from tas.space import SearchSpace


def decode(scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace, budget: Budget) -> Architecture:
    """The architecture with the largest sum of scores that costs no more than the budget.

    Args:
        scores: one number per candidate, by width and depth name; log-probabilities, or any other merit.
        graph: of the model.
        space: the candidates.
        budget: bounds, all of which hold for the result.

    Raises:
        BudgetError: no architecture of the space fits.
        ConfigError: the scores do not fit the space.
    """
    for name, sizes in (*space.widths.items(), *space.depths.items()):
        if len(scores.get(name, ())) != len(sizes):
            raise ConfigError(f"scores of {name!r} must be one number for each of its {len(sizes)} candidates")
    budget.require_reachable(graph, space)
    return _Problem(scores, graph, space, budget).solve()


class _Problem:
    def __init__(self, scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace, budget: Budget):
        self.space = space
        self.names = [*space.widths, *space.depths]
        sizes = [*space.widths.values(), *space.depths.values()]
        self.counts = [len(candidates) for candidates in sizes]
        self.scores = np.full((len(sizes), max(self.counts, default=1)), -np.inf)
        for row, name in enumerate(self.names):
            self.scores[row, : self.counts[row]] = scores[name]
        self.moves = [[(row, column)] for row, count in enumerate(self.counts) for column in range(count)]
        self.moves += stream_moves(graph, space)
        limits = budget.limits(graph)
        costs = [graph.cost(name) for name in limits]
        self.tables = [CostTable(cost, space.widths, space.depths) for cost in costs]
        self.limits = np.array(list(limits.values()), dtype=float)
        self.cheapest = cheapest_choice(graph, space, self.load, grows=not any(cost.is_measured for cost in costs))

    def load(self, choices: np.ndarray) -> np.ndarray:
        """(architectures, choices) to the largest share of a limit, per architecture; at most 1 fits."""
        shares = [table.exact(choices) / limit for table, limit in zip(self.tables, self.limits, strict=True)]
        return np.max(shares, axis=0)

    def score(self, choice: np.ndarray) -> float:
        """Sum of the scores of one architecture."""
        return float(self.scores[np.arange(len(choice)), choice].sum())

    def solve(self) -> Architecture:
        """The best choice if it fits, else the best of the improved starts."""
        if not self.names:
            return self.space.largest
        best = self.scores.argmax(1)
        if self.load(best[None])[0] > 1:
            if self.load(self.cheapest[None])[0] > 1:  # every bound alone can be held
                raise BudgetError("no architecture was found that holds all bounds at once; raise one of them")
            starts = [self.descend(best), *self.multipliers(best)]
            best = max((self.improve(start) for start in starts), key=self.score)
        picked = {name: int(index) for name, index in zip(self.names, best, strict=True)}
        return Architecture(
            {name: sizes[picked[name]] for name, sizes in self.space.widths.items()},
            {name: sizes[picked[name]] for name, sizes in self.space.depths.items()},
        )

    def changes(self, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All single changes, and those of whole streams: their architectures, their loads, their gains in score."""
        changed = np.repeat(choice[None], len(self.moves), axis=0)
        for trial, move in zip(changed, self.moves, strict=True):
            for row, column in move:
                trial[row] = column
        changed = changed[(changed != choice).any(1)]
        gains = self.scores[np.arange(len(choice)), changed].sum(1) - self.score(choice)
        return changed, self.load(changed) if len(changed) else np.zeros(0), gains

    def descend(self, choice: np.ndarray) -> np.ndarray:
        """Give up as little score as possible per cost saved until the budget holds."""
        while (now := self.load(choice[None])[0]) > 1:
            changed, loads, gains = self.changes(choice)
            saved = now - loads
            # a change that saves more than is needed is worth no more than the need
            worth = np.where(
                saved > 0, np.minimum(gains, 0) / np.minimum(np.maximum(saved, 1e-12), now - 1 + 1e-12), -np.inf
            )
            if not worth.size or worth.max() == -np.inf:
                return self.cheapest
            choice = changed[int(worth.argmax())]
        return choice

    def multipliers(self, choice: np.ndarray) -> list[np.ndarray]:
        """Coordinate ascent on score minus multiplier times load, for growing multipliers; those that fit."""
        found: dict[bytes, np.ndarray] = {}
        for multiplier in np.geomspace(1e-3, 1e4, 22):
            choice = choice.copy()
            for _ in range(3):
                before = choice.copy()
                for row, count in enumerate(self.counts):
                    trial = np.repeat(choice[None], count, axis=0)
                    trial[:, row] = np.arange(count)
                    choice[row] = int((self.scores[row, :count] - multiplier * self.load(trial)).argmax())
                if (before == choice).all():
                    break
            if self.load(choice[None])[0] <= 1:
                found[choice.tobytes()] = choice
        return sorted(found.values(), key=self.score)[-3:]

    def improve(self, choice: np.ndarray) -> np.ndarray:
        """Take single changes that raise the score within the budget, then exchanges of two, until none is left."""
        while True:
            changed, loads, gains = self.changes(choice)
            allowed = np.where((loads <= 1) & (gains > 1e-12), gains, -np.inf)
            if allowed.size and allowed.max() > 0:
                choice = changed[int(allowed.argmax())]
                continue
            exchanged = self._exchange(choice, changed, gains)
            if exchanged is None:
                return choice
            choice = exchanged

    def _exchange(self, choice: np.ndarray, changed: np.ndarray, gains: np.ndarray) -> np.ndarray | None:
        """The best pair of one change that raises the score and one that pays for it."""
        best, best_gain = None, 1e-12
        for place in np.argsort(-gains)[:32]:
            if gains[place] <= 0:
                break
            others, loads, losses = self.changes(changed[place])
            total = np.where(loads <= 1, gains[place] + losses, -np.inf)
            if total.size and total.max() > best_gain:
                best, best_gain = others[int(total.argmax())], float(total.max())
        return best
