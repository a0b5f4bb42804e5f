"""Architectures tried one after another with inherited weights: random search and evolution."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tas.architecture import Architecture
from tas.data import Batch
from tas.data.augment import own_randomness, seed_everything
from tas.errors import ConfigError, DataError
from tas.fit import Fitter
from tas.graph import Graph
from tas.nn.statistics import measure_statistics
from tas.nn.surgery import cut
from tas.progress import Bar
from tas.task import Loss, right_classes, run_model

WORST = -1e30  # where the loss is not finite


@dataclass
class Judge:
    """Says how good an architecture is without training it; each is measured once.

    It gets the first channels of the ranked model and batch-norm statistics of its own; the score is then the
    percentage of right classes, or the negative loss where a loss is given.

    Attributes:
        model: the full model, ranked; not changed.
        graph: of it.
        calibration: gives the batches for the statistics, the same every time.
        evaluation: gives the batches for the score, of other samples, the same every time.
        loss: (outputs, targets) to a scalar; None for a classification.
        seed: of what the batches draw while they are read.
        scores: what was measured.

    Source:
        Li et al., "EagleEye", ECCV 2020, section 3.3, https://arxiv.org/abs/2007.02491, for the statistics.
    """

    model: nn.Module
    graph: Graph
    calibration: Callable[[], Iterable[Batch]]
    evaluation: Callable[[], Iterable[Batch]]
    loss: Loss | None = None
    seed: int = 0
    scores: dict[Architecture, float] = field(default_factory=dict)

    def score(self, architecture: Architecture) -> float:
        """The larger the better."""
        if architecture not in self.scores:
            device = next(self.model.parameters()).device
            with own_randomness(device):
                seed_everything(self.seed)  # data sets of the user may draw from the global generators
                self.scores[architecture] = self._measure(architecture)
        return self.scores[architecture]

    @torch.no_grad()
    def _measure(self, architecture: Architecture) -> float:
        small = measure_statistics(cut(self.model, self.graph, architecture), self.calibration())
        total, count = 0.0, 0
        for inputs, targets in self.evaluation():
            outputs: Any = run_model(small, inputs)
            if self.loss is None:
                right, of = right_classes(outputs, targets)
                value = 100.0 * right
            else:
                value, of = -float(self.loss(outputs, targets)) * len(inputs), len(inputs)
            total, count = total + value, count + of
        if count == 0:
            raise DataError("there is no batch to try an architecture on; give more samples, or smaller batches")
        score = total / count
        return score if abs(score) < -WORST else WORST

    @property
    def best(self) -> Architecture:
        """The best so far; the first of equals."""
        return max(self.scores, key=lambda architecture: self.scores[architecture])


def random_search(fitter: Fitter, judge: Judge, *, candidates: int, seed: int, bar: Bar) -> Architecture:
    """Draw every size uniformly, make it fit, and keep the best.

    Rejection would need hopelessly many draws for a small budget; single random steps to the budget do not, and favour
    no width or depth, but draw near the edge of the budget, not uniformly below it.

    Args:
        fitter: makes a draw fit.
        judge: scores it.
        candidates: draws; one that was seen before is not measured again.
        seed: of the draws.
        bar: told of every draw.
    """
    draw = random.Random(seed)
    for _ in range(candidates):
        picks = [draw.randrange(len(sizes)) for sizes in fitter.space.choices.values()]
        judge.score(fitter.fitted(picks, draw.getrandbits(63)))
        bar.advance(f"best {judge.scores[judge.best]:.3f}")
    return judge.best


def evolve(fitter: Fitter, judge: Judge, *, candidates: int, population: int, seed: int, bar: Bar) -> Architecture:
    """Cross and mutate the best architectures so far; every child is made to fit before it is scored.

    Optuna's NSGA-II sampler with one objective: a plain genetic algorithm, uniform crossover, one mutation on average.

    Args:
        fitter: makes a child fit; the same child always the same way.
        judge: scores it.
        candidates: children in all generations together; one that was seen before is not measured again.
        population: parents kept; at most a quarter of the candidates, so that there are four generations.
        seed: of everything drawn.
        bar: told of every child.

    Raises:
        ConfigError: optuna is not installed.

    Source:
        Deb et al., IEEE Trans. Evolutionary Computation 6(2), 2002; Akiba et al., "Optuna", KDD 2019.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("evolution needs optuna, which is missing; pip install tas-pruning[rivals]") from None
    size = max(2, min(population, candidates // 4))
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.NSGAIISampler(population_size=size, seed=seed % 2**32)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(candidates):
            child = study.ask()
            choices = fitter.space.choices.items()
            picks = [child.suggest_int(name, 0, len(sizes) - 1) for name, sizes in choices]
            study.tell(child, judge.score(fitter.fitted(picks, seed)))
            bar.advance(f"best {judge.scores[judge.best]:.3f}")
    finally:
        optuna.logging.set_verbosity(level)
    return judge.best
