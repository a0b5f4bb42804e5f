"""Architectures tuned for a few steps each before one is chosen: what a dropped block costs is known only then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.data import Batch
from tas.data.augment import own_randomness, seed_everything
from tas.decode import decode
from tas.errors import BudgetError
from tas.graph import Graph
from tas.nn.surgery import cut
from tas.pipeline.search.saliency import Objective
from tas.space import SearchSpace

WORST = 1e30  # where the loss is not finite


@dataclass
class Trials:
    """Cuts an architecture from the full model, tunes it for a few steps and measures its loss; once each.

    Attributes:
        model: the full model whose first channels are inherited; not changed.
        graph: of it.
        tuning: gives as many batches as there are steps, the same every time.
        held_out: gives the batches for the loss, of other samples, the same every time.
        objective: loss of a network on a batch.
        learning_rate: of SGD with Nesterov momentum, cosine to 0 over the steps.
        momentum: of it.
        weight_decay: of it.
        seed: of what batches and dropout draw.
        known: losses that an interrupted search has measured.
        losses: what was asked for, in order.
    """

    model: nn.Module
    graph: Graph
    tuning: Callable[[], Iterable[Batch]]
    held_out: Callable[[], Iterable[Batch]]
    objective: Objective
    steps: int
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    known: Mapping[Architecture, float] = field(default_factory=dict)
    losses: dict[Architecture, float] = field(default_factory=dict)

    def loss(self, architecture: Architecture) -> float:
        """Mean over the held-out batches."""
        if architecture in self.known:
            self.losses[architecture] = self.known[architecture]
        if architecture not in self.losses:
            device = next(self.model.parameters()).device
            with own_randomness([device] if device.type == "cuda" else []):
                seed_everything(self.seed)
                self.losses[architecture] = self._measure(architecture)
        return self.losses[architecture]

    @property
    def best(self) -> Architecture:
        """The one with the lowest loss so far; the first of equals."""
        return min(self.losses, key=lambda architecture: self.losses[architecture])

    def _measure(self, architecture: Architecture) -> float:
        small = cut(self.model, self.graph, architecture)
        self._tune(small)
        small.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in self.held_out():
                total, count = total + float(self.objective(small, inputs, targets)) * len(inputs), count + len(inputs)
        value = total / max(1, count)
        return value if math.isfinite(value) else WORST

    def _tune(self, small: nn.Module) -> None:
        weights = [parameter for parameter in small.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(
            weights, self.learning_rate, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
        )
        small.train()
        for step, (inputs, targets) in enumerate(self.tuning()):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            value = self.objective(small, inputs, targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def climb(
    scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace, budget: Budget, trials: Trials, most: int
) -> Iterator[Architecture]:
    """Search the depths by trials, from the architecture that the scores ask for.

    For depths one step away, the scores choose the widths that fit; of these architectures the best is where it goes
    on, until none is better. Where no depth is open, the scores alone decide and nothing is tried.

    Args:
        scores: one number per candidate, by width and depth name.
        graph: of the model.
        space: the candidates.
        budget: that everything tried holds; reachable.
        trials: compares.
        most: trials allowed.

    Yields:
        The best architecture so far, after the start and after every trial.
    """
    best = decode(scores, graph, space, budget)
    if most < 2 or not any(len(sizes) > 1 for sizes in space.depths.values()):
        yield best
        return
    trials.loss(best)
    yield best
    while True:
        around = [
            found for depths in _near(best.depths, space) if (found := _decoded(depths, scores, graph, space, budget))
        ]
        fresh = [found for found in dict.fromkeys(around) if found not in trials.losses]
        for found in fresh[: most - len(trials.losses)]:
            trials.loss(found)
            yield trials.best
        if trials.best == best or len(trials.losses) >= most:
            return
        best = trials.best


def _near(depths: Mapping[str, int], space: SearchSpace) -> Iterator[dict[str, int]]:
    """Depths in which one stage has its next smaller or larger candidate."""
    for name, sizes in space.depths.items():
        place = sizes.index(depths[name])
        for other in (place - 1, place + 1):
            if 0 <= other < len(sizes):
                yield {**depths, name: sizes[other]}


def _decoded(
    depths: Mapping[str, int],
    scores: Mapping[str, Sequence[float]],
    graph: Graph,
    space: SearchSpace,
    budget: Budget,
) -> Architecture | None:
    """The best widths for given depths; None where none fit."""
    only = SearchSpace(space.widths, {name: (kept,) for name, kept in depths.items()})
    try:
        return decode({**scores, **{name: [0.0] for name in depths}}, graph, only, budget)
    except BudgetError:
        return None
