"""Architectures that fit a budget by a rule or by chance: one ratio, one threshold, and random ones."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from tas.architecture import Architecture
from tas.budget import Budget, share_used
from tas.cheapest import cheapest
from tas.errors import BudgetError
from tas.graph import Graph
from tas.space import SearchSpace

USED = 0.9  # least share of the budget that a random architecture should use
ROUNDS = 20  # attempts at that


def widths_alone(space: SearchSpace) -> SearchSpace:
    """The same candidates for the widths; every depth keeps its largest."""
    return SearchSpace(space.widths, {name: sizes[-1:] for name, sizes in space.depths.items()})


def require_widths_suffice(graph: Graph, space: SearchSpace, budget: Budget, method: str) -> None:
    """Check that a budget can be held with all blocks kept.

    Args:
        graph: of the model.
        space: the candidates.
        budget: to hold.
        method: for the message.

    Raises:
        BudgetError: it cannot, and what to do.
    """
    try:
        budget.require_reachable(graph, widths_alone(space))
    except BudgetError as error:
        raise BudgetError(f"{method} cuts channels and keeps every block: {error}") from None


def uniform(graph: Graph, space: SearchSpace, budget: Budget) -> Architecture:
    """The architecture of the largest single ratio that fits: hand-crafted, the same share of every width.

    Every width takes its largest candidate of at most ratio x channels, or its smallest where none is so small; all
    blocks stay. What candidates leave of the budget goes to single widths, the last layers first: each takes its next
    candidate where that fits.

    Raises:
        BudgetError: no ratio fits.
    """
    full = graph.full.widths
    ratios = sorted({size / full[name] for name, sizes in space.widths.items() for size in sizes}, reverse=True)
    # 1e-9: the share a candidate has itself must reach it
    return _first_that_fits(
        ratios, lambda ratio: {name: ratio * size * (1 + 1e-9) for name, size in full.items()}, graph, space, budget
    )


def above_threshold(
    importance: Mapping[str, np.ndarray], graph: Graph, space: SearchSpace, budget: Budget
) -> Architecture:
    """The architecture of the lowest single threshold that fits: channels of less importance go, in whatever width.

    Every width takes its largest candidate of at most as many channels as reach the threshold, or its smallest; all
    blocks stay. What candidates leave of the budget goes to the channels that a lower threshold would keep next, of
    whatever width still can.

    Args:
        importance: by width name, (channels,), comparable between widths.
        graph: of the model.
        space: the candidates.
        budget: to hold.

    Raises:
        BudgetError: no threshold fits.
    """
    thresholds = np.unique(np.concatenate([[-np.inf, np.inf], *importance.values()])).tolist()
    return _first_that_fits(
        thresholds, lambda threshold: {name: int((values >= threshold).sum()) for name, values in importance.items()},
        graph, space, budget,
    )  # fmt: skip


def _first_that_fits(
    levels: Sequence[float],
    wanted: Callable[[float], Mapping[str, float]],
    graph: Graph,
    space: SearchSpace,
    budget: Budget,
) -> Architecture:
    """The architecture of the first level that fits, grown towards the levels before it until the budget is used.

    Levels start at the most generous and end at the smallest sizes; what a level wants is rounded down to candidates.
    """
    require_widths_suffice(graph, space, budget, "this method")
    only, wanted = widths_alone(space), cache(wanted)

    def at(level: float) -> Architecture:
        """What one level asks for, rounded down to candidates."""
        sizes = wanted(level)
        widths = {
            name: max([size for size in candidates if size <= sizes[name]], default=candidates[0])
            for name, candidates in only.widths.items()
        }
        return Architecture(widths, only.largest.depths)

    first = bisect_left(levels, True, key=lambda level: budget.holds(graph, at(level)))
    if first == len(levels):
        # no levels: no widths; none fits: in streams of free residuals, projections may make even the smallest too dear
        return cheapest(graph, only, next(iter(budget.limits(graph))))
    found = at(levels[first])
    growths = [
        (bisect_left(levels, True, key=lambda level: wanted(level)[name] < size), place, name, size)
        for place, (name, candidates) in enumerate(only.widths.items())
        for size in candidates
        if size > found.widths[name]
    ]
    for _, _, name, size in sorted(growths, key=lambda growth: (-growth[0], -growth[1], growth[3])):
        grown = replace(found, widths={**found.widths, name: size})
        if size == min(other for other in only.widths[name] if other > found.widths[name]):  # none was too dear before
            found = grown if budget.holds(graph, grown) else found
    return found


@dataclass(frozen=True)
class Fitter:
    """Turns any choice of candidates into an architecture that fits.

    Attributes:
        graph: of the model.
        space: the candidates.
        budget: to hold; reachable.
    """

    graph: Graph
    space: SearchSpace
    budget: Budget

    @cached_property
    def limits(self) -> dict[str, int]:
        """The bounds in absolute numbers, by quantity."""
        return self.budget.limits(self.graph)

    def fitted(self, picks: Sequence[int], seed: int) -> Architecture:
        """Move random single sizes by one candidate: down until the budget holds, then up as long as it does.

        Args:
            picks: index of a candidate, for every width and depth in the order of `space.choices`.
            seed: of which sizes move; the same picks and seed give the same architecture.

        Returns:
            What fits, while nothing does that is one candidate larger. It uses 90 % of the budget, or less where twenty
            attempts do not reach that.
        """
        draw = random.Random(seed)
        best = self._filled(self._shrunk(picks, draw), draw)
        for _ in range(ROUNDS):
            # the next depth may cost more than is left: try it, and pay for it elsewhere
            larger = next(self._grown(best, draw), None) if self._load(best) < USED else None
            if larger is None:
                break
            best = max(best, self._filled(self._shrunk(larger, draw), draw), key=self._load)
        return self.space.architecture(best)

    def _load(self, picks: Sequence[int]) -> float:
        return share_used(self.graph, self.space.architecture(picks), self.limits)

    def _shrunk(self, picks: Sequence[int], draw: random.Random) -> list[int]:
        """Random sizes made smaller by one candidate until the budget holds."""
        held = list(picks)
        while self._load(held) > 1:
            places = [place for place, pick in enumerate(held) if pick > 0]
            if not places:  # projections between the smallest sizes may be dearer than none between larger ones
                least = cheapest(self.graph, self.space, next(iter(self.limits)))
                chosen = {**least.widths, **least.depths}
                return [sizes.index(chosen[name]) for name, sizes in self.space.choices.items()]
            held[draw.choice(places)] -= 1
        return held

    def _filled(self, picks: Sequence[int], draw: random.Random) -> list[int]:
        """Random sizes made larger by one candidate until none fits."""
        held: list[int] | None = list(picks)
        while held is not None:
            best, held = held, next((other for other in self._grown(held, draw) if self._load(other) <= 1), None)
        return best

    def _grown(self, picks: Sequence[int], draw: random.Random) -> Iterator[list[int]]:
        """Every growth of one size by one candidate, in random order."""
        counts = [len(sizes) for sizes in self.space.choices.values()]
        places = [place for place, pick in enumerate(picks) if pick + 1 < counts[place]]
        for place in draw.sample(places, len(places)):
            yield [pick + (other == place) for other, pick in enumerate(picks)]
