"""Trials: networks under the budget, their layers fitted to the full one's, show what sizes are worth together.

What a dropped block or a narrow stream costs is known only once the other layers have adapted. Training adapts them, in
some thousand steps; regression does so in one forward pass, well enough that losses then rank architectures as their
own trainings do (LOG.md, 2026-11-30).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.data import Batch, Source
from tas.data.augment import epoch_seed, seed_everything
from tas.data.source import first_images
from tas.decode import Decoder
from tas.distributed import num_processes, process_index, summed
from tas.errors import BudgetError, RunError
from tas.graph import Graph
from tas.nn.reconstruction import Made, reconstruct
from tas.nn.surgery import cut
from tas.pipeline.search.belief import NOT_FINITE, Belief
from tas.pipeline.search.config import FINALISTS, MORE
from tas.pipeline.search.steps import Steps
from tas.progress import Bar
from tas.space import SearchSpace

FIRST = 8  # architectures in the first round
ROUND = 4  # in every further one
USED = 0.9  # of what the scores' own choice uses of a bound, at least, in the first round
DRAWS = 10  # corners looked at, at most, for every place in the first round
SAMPLES = 8  # of the belief for one place, each further from its mean, until one asks for what was not tried
PLACES = 2**12  # outputs of a layer that are fitted, at most


@dataclass(frozen=True)
class Round:
    """What some trials have found.

    Attributes:
        losses: of the architectures of this round.
        best: of all rounds so far, or of the finalists.
        loss: of the best.
    """

    losses: dict[Architecture, float]
    best: Architecture
    loss: float


def rounds_of(
    scores: Mapping[str, Sequence[float]],
    graph: Graph,
    space: SearchSpace,
    budget: Budget,
    judge: Callable[[Sequence[Architecture], int], list[float]],
    *,
    count: int,
    seed: int,
    known: Sequence[Sequence[float]] = (),
) -> Iterator[Round]:
    """Try what the scores ask for, whole and in corners of the space, then what they ask for by all that was learned.

    Every place of a later round takes a sample of the belief, and the best architecture by it under the budget. In the
    last round the best are tried again on more images: the lowest of many losses owes something to chance.

    Args:
        scores: one number per candidate, by width and depth name.
        graph: of the model.
        space: the candidates.
        budget: that everything here holds; reachable.
        judge: losses of some architectures on so many times the usual images.
        count: trials, at most: they end where every sample asks for what was tried.
        seed: of everything drawn.
        known: losses of the rounds that an interrupted search has done.

    Yields:
        Every round, the known ones too.

    Raises:
        RunError: the known losses are of another search.
    """
    decoder, belief = Decoder(graph, space, budget), Belief(scores, graph, space)
    tried: dict[Architecture, float] = {}
    earlier = list(known)

    def losses_of(architectures: Sequence[Architecture], times: int) -> dict[Architecture, float]:
        """As they are known, or judged now."""
        losses = earlier.pop(0) if earlier else judge(architectures, times)
        if len(losses) != len(architectures):
            raise RunError("the record is of another search; move it away to search anew")
        return dict(zip(architectures, losses, strict=True))

    fresh, first, number = _first(decoder, scores, min(FIRST, count), seed), 0, 0
    while fresh:
        found = losses_of(fresh, 1)
        tried |= found
        first, number = first or len(tried), number + 1
        yield _round(found, tried)
        if min(tried.values()) < NOT_FINITE:
            belief.learn(tried, first)
        fresh = _proposed(belief, decoder, tried, min(ROUND, count - len(tried)), (seed, number))
    if len(tried) > 1:
        found = losses_of(sorted(tried, key=lambda architecture: tried[architecture])[:FINALISTS], MORE)
        yield _round(found, found)


def _round(found: dict[Architecture, float], among: Mapping[Architecture, float]) -> Round:
    best = min(among, key=lambda architecture: among[architecture])
    return Round(found, best, among[best])


def _first(decoder: Decoder, scores: Mapping[str, Sequence[float]], most: int, seed: int) -> list[Architecture]:
    """The scores' own choice, and what they ask for in corners of the space, drawn: some depths, no large widths."""
    start = _as_network(decoder, decoder.best(scores))
    found, space, draw = {start: None}, decoder.space, random.Random(seed)
    levels = max(map(len, space.widths.values()), default=1)
    if math.prod(map(len, space.depths.values())) * levels <= DRAWS * most:
        corners = [(kept, closed) for kept in product(*space.depths.values()) for closed in range(levels)]
        draw.shuffle(corners)
    else:
        corners = [
            (tuple(map(draw.choice, space.depths.values())), draw.randrange(levels)) for _ in range(DRAWS * most)
        ]
    least = USED * decoder.share(start)
    for kept, closed in corners:
        widths = {name: sizes[: max(1, len(sizes) - closed)] for name, sizes in space.widths.items()}
        part = SearchSpace(widths, {name: (size,) for name, size in zip(space.depths, kept, strict=True)})
        if len(found) == most:
            break
        if decoder.share(part.largest) < least or decoder.share(part.smallest) > 1:
            continue
        try:
            one = _as_network(decoder, decoder.best(scores, part))
        except BudgetError:
            continue
        if decoder.share(one) >= least:
            found[one] = None
    return list(found)


def _proposed(
    belief: Belief, decoder: Decoder, tried: Mapping[Architecture, float], most: int, seed: tuple[int, int]
) -> list[Architecture]:
    """So many that samples of the belief ask for, or fewer where they ask for what was tried."""
    draw, found = np.random.default_rng([number % 2**32 for number in seed]), {}
    for place in range(most):
        near = (1 + place % 2) / 2  # by turns: half as far from what is believed as a sample, and as far
        for further in range(SAMPLES):
            one = _as_network(decoder, decoder.best(belief.sample(draw, near + further / 2)))
            if one not in tried and one not in found:
                found[one] = None
                break
    return list(found)


def _as_network(decoder: Decoder, architecture: Architecture) -> Architecture:
    """Widths of dropped blocks at their smallest: two that differ in those alone are one network."""
    idle, least = decoder.graph.idle(architecture), decoder.space.smallest.widths
    widths = {name: least[name] if name in idle else size for name, size in architecture.widths.items()}
    return Architecture(widths, architecture.depths)


class Bench:
    """Where architectures are tried: the full model, training images to fit its layers to, and others to judge on.

    Args:
        model: the full one, ranked; not changed.
        graph: of it.
        source: its first half is fitted on, its second judged on.
        steps: the objective, the teacher, and the config, which says on how many images.
        device: to work on.

    Attributes:
        images: that every architecture has read, of the last that were tried: fitted and judged on.
    """

    def __init__(self, model: nn.Module, graph: Graph, source: Source, steps: Steps, device: str):
        self._model, self._graph, self._source, self._steps, self._device = model, graph, source, steps, device
        self._times, self.images = 0, 0

    def losses(self, architectures: Sequence[Architecture], times: int, *, bar: Bar) -> list[float]:
        """One per architecture: of the fitted network on held-out images. Several processes share the architectures.

        Args:
            architectures: to try.
            times: so many times the usual images, fewer where there are not so many, and places in them.
            bar: told of every one.
        """
        if times != self._times:
            self._look(times)
        losses, count = [0.0] * len(architectures), sum(len(batch[0]) for batch in self._held_out)
        with torch.no_grad():
            for place, architecture in enumerate(architectures):
                if place % num_processes() == process_index():
                    small = reconstruct(cut(self._model, self._graph, architecture), self._made, architecture)
                    total = sum(float(self._steps.objective(small, *batch)) * len(batch[0]) for batch in self._held_out)
                    losses[place] = total / count if math.isfinite(total) else NOT_FINITE
                bar.advance()
        return summed(losses)

    @property
    def read(self) -> list[Batch]:
        """What the last losses were computed from."""
        return [(self._made.inputs, self._made.inputs), *(batch[:2] for batch in self._held_out)]

    def _look(self, times: int) -> None:
        """At the images, once for all architectures."""
        config = self._steps.config
        seed_everything(epoch_seed(config.seed, 0, 0))  # data sets of the user may draw from the global generators
        inputs = first_images(
            self._source, times * config.trial_images, seed=config.seed, half=0, device=self._device
        )  # fmt: skip
        self._made = Made.of(self._model, self._graph, inputs, rows=times * PLACES, seed=config.seed)
        self._held_out = self._steps.held_out(self._source, self._device, len(inputs))
        self._times = times
        self.images = len(inputs) + sum(len(batch[0]) for batch in self._held_out)
