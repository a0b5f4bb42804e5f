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
from tas.distributed import average_gradients, summed
from tas.errors import BudgetError
from tas.graph import Graph
from tas.nn.statistics import average_statistics
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
        held_out: gives the batches for the loss, of other samples, the same every time; of several processes, to each
            its own.
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
        total, count = summed([total, count])
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
            average_gradients(weights)
            optimizer.step()
        average_statistics(small)


def run_off(trials: Trials, longer: Trials, most: int) -> Iterator[Architecture]:
    """Tune the best of the trials again, longer; give the best so far after each. Nothing where one alone is left."""
    leaders = sorted(trials.losses, key=lambda architecture: trials.losses[architecture])[:most]
    for architecture in leaders if len(leaders) > 1 else ():
        longer.loss(architecture)
        yield longer.best


@dataclass(frozen=True)
class Corner:
    """A part of the space: some depths, and widths without their largest candidates.

    Attributes:
        depths: blocks kept, by depth name.
        closed: how many of the largest candidates of every width are closed; one always stays.
    """

    depths: Mapping[str, int]
    closed: int = 0

    def around(self, space: SearchSpace) -> Iterator[Corner]:
        """Corners one step away: one candidate more closed, one stage shorter or longer, one candidate fewer closed."""
        if self.closed + 1 < max(map(len, space.widths.values()), default=1):
            yield Corner(self.depths, self.closed + 1)
        for name, sizes in space.depths.items():
            place = sizes.index(self.depths[name])
            for other in (place - 1, place + 1):
                if 0 <= other < len(sizes):
                    yield Corner({**self.depths, name: sizes[other]}, self.closed)
        if self.closed:
            yield Corner(self.depths, self.closed - 1)

    def best(
        self, scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace, budget: Budget
    ) -> Architecture | None:
        """What the scores ask for in this corner; None where nothing fits the budget."""
        widths = {name: sizes[: max(1, len(sizes) - self.closed)] for name, sizes in space.widths.items()}
        only = SearchSpace(widths, {name: (kept,) for name, kept in self.depths.items()})
        merits = {name: scores[name][: len(sizes)] for name, sizes in widths.items()}
        try:
            return decode({**merits, **{name: [0.0] for name in self.depths}}, graph, only, budget)
        except BudgetError:
            return None


def climb(
    scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace, budget: Budget, trials: Trials, most: int
) -> Iterator[Architecture]:
    """Search by trials, from the architecture that the scores ask for.

    The scores know single cuts. What a dropped block costs after training they do not know, and they hold on to wide
    residual streams, whose cut every layer feels at once but makes up for. So trials decide the depths, and how many of
    the largest candidates of every width are closed: between the scores' own choice and equal shares for all. In every
    such corner of the space the scores choose the widths that fit. Of the corners one step away, the best is where it
    goes on, until none is better.

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
    start = decode(scores, graph, space, budget)
    if most < 2 or not space.is_open:
        yield start
        return
    corners = {start: Corner(start.depths)}
    trials.loss(start)
    yield start
    best = start
    while True:
        found = ((corner.best(scores, graph, space, budget), corner) for corner in corners[best].around(space))
        fresh = {tried: corner for tried, corner in found if tried is not None and tried not in corners}
        for tried in list(fresh)[: most - len(trials.losses)]:
            corners[tried] = fresh[tried]
            trials.loss(tried)
            yield trials.best
        if trials.best == best or len(trials.losses) >= most:
            return
        best = trials.best
