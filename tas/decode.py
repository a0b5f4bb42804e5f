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
from tas.budget import Budget, share_used
from tas.cheapest import cheapest_choice
from tas.errors import BudgetError, ConfigError
from tas.graph import Graph
from tas.moves import Loads, Moves
from tas.space import SearchSpace

FIRST_CHANGES = 32  # that an exchange of two may begin with


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
    for name, sizes in space.choices.items():
        if len(scores.get(name, ())) != len(sizes):
            raise ConfigError(f"scores of {name!r} must be one number for each of its {len(sizes)} candidates")
    budget.require_reachable(graph, space)
    return Decoder(scores, graph, space, budget).best()


class Decoder:
    """Decodes parts of one space by the same scores under the same budget.

    Args:
        scores: one number per candidate, by width and depth name.
        graph: of the model.
        space: the candidates.
        budget: bounds, all of which hold for whatever is decoded.
    """

    def __init__(self, scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace, budget: Budget):
        self.graph, self.space, self.limits = graph, space, budget.limits(graph)
        self._scores = np.full((len(space.choices), max(map(len, space.choices.values()), default=1)), -np.inf)
        for row, (name, sizes) in enumerate(space.choices.items()):
            self._scores[row, : len(sizes)] = scores[name]
        self._loads = Loads(graph, space, self.limits)

    def best(self, within: SearchSpace | None = None) -> Architecture:
        """The architecture with the largest sum of scores.

        Args:
            within: some of the candidates, of every choice at least one; all by default.

        Raises:
            BudgetError: none of them fits.
        """
        if not self.space.choices:
            return self.space.largest
        offered = (within or self.space).choices
        is_open = np.zeros(self._scores.shape, dtype=bool)
        for row, (name, sizes) in enumerate(self.space.choices.items()):
            is_open[row, : len(sizes)] = np.isin(sizes, offered[name])
        moves = Moves(self.graph, self.space, self._loads, is_open)
        return self.space.architecture(_Problem(np.where(is_open, self._scores, -np.inf), moves).solve().tolist())

    def share(self, architecture: Architecture) -> float:
        """See `share_used`."""
        return share_used(self.graph, architecture, self.limits)


class _Problem:
    def __init__(self, scores: np.ndarray, moves: Moves):
        self.scores, self.moves, self.load = scores, moves, moves.load

    def score(self, choice: np.ndarray) -> float:
        """Sum of the scores of one architecture."""
        return float(self.scores[np.arange(len(choice)), choice].sum())

    def solve(self) -> np.ndarray:
        """The best choice if it fits, else the best of the improved starts."""
        best = self.scores.argmax(1)
        if self.fits(best):
            return best
        descended = self.descend(best)
        if not self.fits(descended):  # though every bound alone can be held
            raise BudgetError("no architecture was found that holds all bounds at once; raise one of them")
        return max((self.improve(start) for start in (descended, *self.multipliers(best))), key=self.score)

    def fits(self, choice: np.ndarray) -> bool:
        """Whether it holds the budget."""
        return bool(self.load.of(choice[None])[0] <= 1)

    def descend(self, choice: np.ndarray) -> np.ndarray:
        """Give up as little score as possible per cost saved until the budget holds; the cheapest where that ends."""
        while (now := self.load.of(choice[None])[0]) > 1:
            saved = now - self.moves.loads(choice[None])[0]
            lost = np.minimum(self.moves.gains(choice[None], self.scores)[0], 0)
            # a change that saves more than is needed is worth no more than the need
            worth = np.where(saved > 0, lost / np.minimum(np.maximum(saved, 1e-12), now - 1 + 1e-12), -np.inf)
            if worth.max() == -np.inf:
                return cheapest_choice(self.moves)
            choice = self.moves.made(choice, int(worth.argmax()))
        return choice

    def multipliers(self, choice: np.ndarray) -> list[np.ndarray]:
        """Coordinate ascent on score minus multiplier times load, for growing multipliers; those that fit."""
        found: dict[bytes, np.ndarray] = {}
        loads = self.load.changed(choice[None])[0]
        for multiplier in np.geomspace(1e-3, 1e4, 22):
            for _ in range(3):
                before, row = choice, 0
                while True:  # until a change, all choices of a sweep see the same loads
                    wanted = (self.scores - multiplier * loads).argmax(1)
                    differs = np.flatnonzero(wanted[row:] != choice[row:])
                    if not len(differs):
                        break
                    row, choice = row + int(differs[0]), choice.copy()
                    choice[row] = wanted[row]
                    loads, row = self.load.changed(choice[None])[0], row + 1
                if (before == choice).all():
                    break
            if self.fits(choice):
                found[choice.tobytes()] = choice
        return sorted(found.values(), key=self.score)[-3:]

    def improve(self, choice: np.ndarray) -> np.ndarray:
        """Take single changes that raise the score within the budget, then exchanges of two, until none is left."""
        while True:
            gains = self.moves.gains(choice[None], self.scores)[0]
            allowed = np.where((self.moves.loads(choice[None])[0] <= 1) & (gains > 1e-12), gains, -np.inf)
            if allowed.max() > 0:
                choice = self.moves.made(choice, int(allowed.argmax()))
                continue
            exchanged = self._exchange(choice, gains)
            if exchanged is None:
                return choice
            choice = exchanged

    def _exchange(self, choice: np.ndarray, gains: np.ndarray) -> np.ndarray | None:
        """The best pair of one change that raises the score and one that pays for it."""
        places = [int(place) for place in np.argsort(-gains)[:FIRST_CHANGES] if gains[place] > 0]
        if not places:
            return None
        changed = np.array([self.moves.made(choice, place) for place in places])
        total = gains[places][:, None] + self.moves.gains(changed, self.scores)
        total[self.moves.loads(changed) > 1] = -np.inf
        one, other = np.unravel_index(total.argmax(), total.shape)
        return self.moves.made(changed[one], int(other)) if total[one, other] > 1e-12 else None
