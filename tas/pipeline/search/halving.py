"""Successive halving: architectures take turns in training one set of weights, and round by round the worse ones go.

What a dropped block or a narrow stream costs is known only once the weights have adapted. Weights of an architecture's
own would adapt for some thousand steps; shared ones, which nest in each other, adapt for all of them at once. They lead
there from what they know: they first serve networks that are nearly as large as the full model, then smaller and
smaller ones. Straight at a tight budget nothing is left of what was learned, and no loss tells good from bad.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, product

import torch

from tas.architecture import Architecture
from tas.budget import Budget
from tas.data import Batch
from tas.data.augment import epoch_seed, seed_everything
from tas.data.batches import way_out_of_nan
from tas.decode import Decoder
from tas.distributed import num_processes, process_index, summed
from tas.errors import BudgetError, TrainingError
from tas.graph import Graph
from tas.nn.statistics import average_statistics
from tas.nn.sync_batch_norm import synchronized_batch_norm
from tas.pipeline.search.saliency import Judged, batch_statistics
from tas.pipeline.search.steps import Steps
from tas.progress import Bar
from tas.space import SearchSpace

WORST = 1e30  # where the loss is not finite
USED = 0.9  # of what the scores' own choice uses of a bound, at least: less is no rival
DRAWS = 10  # corners looked at, at most, for every place in the field
LOOSEST = 0.7  # of what the budget takes away from the full model, so much is given back to the first networks
STAGES = 5  # of shrinking, from there to the budget
PER_STAGE = 24  # architectures in each, at most


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
        """Corners one step away: one candidate more or fewer closed, one stage shorter or longer."""
        if self.closed + 1 < _levels(space):
            yield Corner(self.depths, self.closed + 1)
        for name, sizes in space.depths.items():
            place = sizes.index(self.depths[name])
            for other in (place - 1, place + 1):
                if 0 <= other < len(sizes):
                    yield Corner({**self.depths, name: sizes[other]}, self.closed)
        if self.closed:
            yield Corner(self.depths, self.closed - 1)

    def of(self, space: SearchSpace) -> SearchSpace:
        """The candidates that are left."""
        widths = {name: sizes[: max(1, len(sizes) - self.closed)] for name, sizes in space.widths.items()}
        return SearchSpace(widths, {name: (kept,) for name, kept in self.depths.items()})


def _levels(space: SearchSpace) -> int:
    return max(map(len, space.widths.values()), default=1)


@dataclass
class Field:
    """The architectures that may enter: of every corner of the space, the one that the scores ask for.

    Widths of dropped blocks are at their smallest here: two architectures that differ in those alone are one network.

    Attributes:
        scores: one number per candidate, by width and depth name.
        graph: of the model.
        space: the candidates.
        budget: that everything here holds; reachable.
        corners: by architecture, the corner it was found in.
    """

    scores: Mapping[str, Sequence[float]]
    graph: Graph
    space: SearchSpace
    budget: Budget
    corners: dict[Architecture, Corner] = field(default_factory=dict)

    @cached_property
    def decoder(self) -> Decoder:
        """Of the whole space under the budget."""
        return Decoder(self.scores, self.graph, self.space, self.budget)

    def first(self, most: int, seed: int) -> list[Architecture]:
        """The scores' own choice over the whole space, then others: all, or drawn where there are too many corners."""
        start = self._as_network(self.decoder.best())
        self.corners[start] = Corner(start.depths)
        depths, levels, draw = self.space.depths, _levels(self.space), random.Random(seed)
        if math.prod(map(len, depths.values())) * levels <= DRAWS * most:
            choices = [(kept, closed) for kept in product(*depths.values()) for closed in range(levels)]
            draw.shuffle(choices)
        else:
            choices = [(tuple(map(draw.choice, depths.values())), draw.randrange(levels)) for _ in range(DRAWS * most)]
        for kept, closed in choices:
            if len(self.corners) < most:
                self._enter(Corner(dict(zip(depths, kept, strict=True)), closed))
        return list(self.corners)

    def looser(self, part: float, most: int, seed: int) -> list[Architecture]:
        """What may enter where the budget gives back this part of what it takes away from the full model."""
        return Field(self.scores, self.graph, self.space, self.budget.loosened(part, self.graph)).first(most, seed)

    def around(self, architecture: Architecture) -> list[Architecture]:
        """Those of the corners one step away that were not there yet."""
        corners = self.corners[architecture].around(self.space)
        return [found for corner in corners if (found := self._enter(corner)) is not None]

    def _enter(self, corner: Corner) -> Architecture | None:
        part, share = corner.of(self.space), self.decoder.share
        least = USED * share(next(iter(self.corners)))
        if share(part.largest) < least or share(part.smallest) > 1:
            return None
        try:
            found = self._as_network(self.decoder.best(part))
        except BudgetError:
            return None
        if found in self.corners or share(found) < least:
            return None
        self.corners[found] = corner
        return found

    def _as_network(self, architecture: Architecture) -> Architecture:
        idle, least = self.graph.idle(architecture), self.space.smallest.widths
        widths = {name: least[name] if name in idle else size for name, size in architecture.widths.items()}
        return Architecture(widths, architecture.depths)


@dataclass(frozen=True)
class Round:
    """What a round of successive halving found.

    Attributes:
        steps: of the weights, so far.
        images: that the losses were measured on; of a round that was known, those asked for.
        losses: of all architectures that were still there, on the same images.
    """

    steps: int
    images: int
    losses: dict[Architecture, float]

    @property
    def best(self) -> Architecture:
        """The one with the lowest loss; the first of equals."""
        return min(self.losses, key=lambda architecture: self.losses[architecture])


def halve(
    entrants: Sequence[Architecture],
    field: Field,
    steps: Steps,
    *,
    tuning: Callable[[], Iterator[Batch]],
    judged: Callable[[int], list[Judged]],
    known: Sequence[Sequence[float]],
    bar: Bar,
) -> Iterator[Round]:
    """Shrink what the weights serve until most can be dropped, then train by turns and drop the worse half each time.

    In the first round nobody who competes is trained: the weights serve networks of looser budgets, tighter by stages
    (progressive shrinking), and what they lead to is then judged. Whenever some have gone, the corners around the best
    that were not there yet come in: where there are more corners than places, the field moves to where the good ones
    are.

    Args:
        entrants: compete from the first round on; one alone needs no round.
        field: who may enter later.
        steps: the supernet, its optimizer and the objective; its config says how long.
        tuning: gives the batches that the weights learn on, the same every time.
        judged: gives held-out batches of so many images, the same every time.
        known: losses of the rounds that an interrupted search has done; the supernet's weights are those after them.
        bar: told of every step.

    Yields:
        Every round, the known ones too.

    Raises:
        TrainingError: no loss is finite.

    Source:
        Jamieson and Talwalkar, AISTATS 2016, section 3, https://arxiv.org/abs/1502.07943. Shrinking: after Cai et al.,
        ICLR 2020, section 3.3, https://arxiv.org/abs/1908.09791; theirs adds smaller sizes by kind, ours by cost.
    """
    config = steps.config
    left, start, rounds = list(entrants), 0, config.halving_rounds(len(entrants))
    batches = tuning()
    for _ in islice(batches, rounds[len(known) - 1].steps if known else 0):
        pass  # now: a data set may draw from the global generators, which every round seeds
    for number, (end, images, stay) in enumerate(rounds):
        if number < len(known):
            losses = list(known[number])
        else:
            seed_everything(epoch_seed(config.seed, number, 3))
            draw = random.Random(f"{config.seed} {number}")
            turns = _turns(left, end - start, draw) if number else _shrinking(field, end - start, draw, config.seed)
            _train(turns, steps, batches, start, bar)
            held_out = judged(images)
            losses, images = _losses(left, steps, held_out), sum(len(batch[0]) for batch in held_out)
        found = dict(zip(left, losses, strict=True))
        order = sorted(left, key=lambda architecture: found[architecture])
        if found[order[0]] >= WORST:
            read = chain(islice(tuning(), end), (batch[:2] for batch in judged(images)))
            way_out = way_out_of_nan(read, "lower search.learning_rate")
            raise TrainingError(f"no loss is finite after a round of the search; {way_out}")
        left = order[: (len(order) + 1) // 2 if number else stay]
        yield Round(end, images, found)
        left, start = left + (field.around(left[0]) if number + 2 < len(rounds) else []), end


def _train(architectures: Iterator[Architecture], steps: Steps, batches: Iterator[Batch], start: int, bar: Bar) -> None:
    """Train the shared weights, a step of the search for each architecture, and measure statistics for batch norms."""
    config, supernet = steps.config, steps.supernet
    supernet.train()
    with synchronized_batch_norm(config.sync_batch_norm):
        for step, architecture in enumerate(architectures, start):
            steps.set_learning_rate(step / config.halving_steps)
            steps.step_of(architecture, *next(batches))
            bar.advance()
    average_statistics(supernet)


def _shrinking(field: Field, count: int, draw: random.Random, seed: int) -> Iterator[Architecture]:
    """So many, of looser budgets first; those of a stage by turns."""
    for stage in range(STAGES):
        places = count * (stage + 1) // STAGES - count * stage // STAGES
        if places:
            among = field.looser(LOOSEST * (1 - stage / STAGES), min(places, PER_STAGE), seed)
            yield from _turns(among, places, draw)


def _turns(architectures: Sequence[Architecture], count: int, draw: random.Random) -> Iterator[Architecture]:
    """So many, each as often as any other, in random order."""
    for place in range(count):
        if place % len(architectures) == 0:
            order = draw.sample(architectures, len(architectures))
        yield order[place % len(architectures)]


@torch.no_grad()
def _losses(architectures: Sequence[Architecture], steps: Steps, batches: Sequence[Judged]) -> list[float]:
    """One per architecture; batch norms use the statistics of the batch. Several processes share the architectures."""
    losses, count = [0.0] * len(architectures), sum(len(batch[0]) for batch in batches)
    with batch_statistics(steps.supernet):
        for place in range(process_index(), len(architectures), num_processes()):
            with steps.supernet.fixed(architectures[place]):
                total = sum(float(steps.objective(steps.supernet, *batch)) * len(batch[0]) for batch in batches)
            losses[place] = total / count if math.isfinite(total) else WORST
    return summed(losses)
