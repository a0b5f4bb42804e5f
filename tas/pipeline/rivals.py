"""The rivals of the search on the same graph, candidates and budget: rankings, random search, evolution, and others."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.data import Batch, Source, as_source
from tas.data.augment import own_randomness, seed_everything
from tas.decode import decode
from tas.distributed import join
from tas.errors import ConfigError
from tas.fit import Fitter, above_threshold, require_widths_suffice, uniform, widths_alone
from tas.graph import Graph
from tas.nn.importance import (
    Importance,
    WeightCriterion,
    batch_norm_scales,
    channel_importance,
    filter_norms,
    ranked,
    taylor_importance,
)
from tas.nn.modes import evaluating
from tas.nn.surgery import require_fit
from tas.options import check_options, near_misses, or_default
from tas.progress import progress_bar
from tas.soft_filters import train_softly
from tas.space import SearchSpace
from tas.task import Loss, require_fit_for_data, task_loss
from tas.trials import Judge, evolve, random_search

Method = Literal["uniform", "random", "evolution", "l1", "l2", "fpgm", "taylor", "bn_scale", "sfp"]
Allocation = Literal["threshold", "uniform", "share"]
METHODS: tuple[str, ...] = get_args(Method)
READ_BY: dict[str, tuple[Method, ...]] = {  # options of RivalConfig, and which methods look at them
    "allocation": ("l1", "l2", "fpgm", "taylor", "bn_scale"),
    "candidates": ("random", "evolution"),
    "population": ("evolution",),
    "calibration_batches": ("random", "evolution", "taylor"),
    "evaluation_batches": ("random", "evolution"),
    "batch_size": ("random", "evolution", "taylor", "sfp"),
    "sfp_epochs": ("sfp",),
    "sfp_learning_rate": ("sfp",),
}


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """How the rivals run.

    Attributes:
        allocation: how l1, l2, fpgm, taylor and bn_scale divide the budget between widths. threshold removes whatever
            is least important, whatever it costs, until the budget holds, as in DepGraph and network slimming; uniform
            keeps one ratio of every width, as in the papers of l1 and fpgm; share keeps the largest sum of importance
            under the budget, which cuts a few dear widths to their smallest (LOG.md, 2026-11-25: far worse).
        candidates: architectures that random and evolution draw.
        population: parents of evolution; at most a quarter of the candidates.
        calibration_batches: of the first half of the training set, for the batch norms of every architecture that is
            tried, and for the gradients of taylor.
        evaluation_batches: of the second half, on which random and evolution compare.
        batch_size: samples in each of these batches, and in a step of sfp.
        sfp_epochs: passes of sfp over the training set.
        sfp_learning_rate: of sfp at its start, for a trained model. He et al., 2018, take 0.01; in a short training the
            ranking then turns over every epoch, since the gradient of a filter that was zero is divided by a variance
            near zero and makes it the longest of all (LOG.md, 2026-11-25).
        seed: of everything drawn.
    """

    allocation: Allocation = "threshold"
    candidates: int = 100
    population: int = 20
    calibration_batches: int = 8
    evaluation_batches: int = 8
    batch_size: int = 64
    sfp_epochs: int = 20
    sfp_learning_rate: float = 0.001
    seed: int = 0

    def __post_init__(self):
        check_options(
            self, "rivals",
            above_zero=(
                "candidates", "population", "calibration_batches", "evaluation_batches", "batch_size", "sfp_epochs",
                "sfp_learning_rate",
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What a rival chose.

    Attributes:
        architecture: the sizes; they hold the budget.
        model: of full size, channels in the rival's order, so that `derive(model, graph, architecture)` keeps the
            chosen ones. Its weights are those of the model given; after sfp, those that it trained.
        seconds: that the choice took.
        details: plain numbers for the record, such as `evaluations` and `best_score`.
    """

    architecture: Architecture
    model: nn.Module
    seconds: float
    details: dict[str, Any]


def choose(
    method: str,
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    data: Any,
    *,
    budget: Budget | Amount | dict[str, Amount],
    config: RivalConfig | None = None,
    loss: Loss | None = None,
) -> Choice:
    """Choose an architecture and its channels by a method other than the search; test images play no part.

    Args:
        method: l1, l2, fpgm, taylor and bn_scale keep the most important channels of all widths; uniform keeps one
            share of every width; sfp trains towards that; these keep all blocks. random and evolution try whole
            architectures, depths included, with inherited weights.
        model: the full, trained model; not changed.
        graph: of it, from `tas.trace`.
        space: the candidates.
        data: a source, or a pair of loaders (training, test); l1, l2, fpgm, bn_scale and uniform do not look at it.
        budget: upper bounds the result holds.
        config: see `RivalConfig`.
        loss: (outputs, targets) to a scalar; without one, taylor and sfp use cross-entropy, and random and evolution
            compare the percentage of right classes instead of the loss.

    Raises:
        ConfigError: there is no such method.
        BudgetError: nothing in the space fits the budget, or nothing with all blocks kept.
        ModelError: the graph does not fit the model, or the model not the data.
        DataError: the training set cannot be halved, or without a loss is not that of a classification.
        TrainingError: the loss of sfp became NaN or infinite.

    Example:
        choice = tas.choose("fpgm", model, graph, space, data, budget="50%")
        small = tas.derive(choice.model, graph, choice.architecture)
    """
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}{near_misses(method, METHODS)}; choose {', '.join(METHODS)}")
    require_fit(model, graph)
    budget, started = Budget.of(budget), time.perf_counter()
    if method in ("random", "evolution"):
        budget.require_reachable(graph, space)
    else:
        require_widths_suffice(graph, space, budget, method)
    job = _Job(cast(Method, method), model, graph, space, data, budget, or_default(config, RivalConfig), loss)
    architecture, full, details = job.run()
    return Choice(architecture, full, round(time.perf_counter() - started, 3), details)


_Outcome = tuple[Architecture, nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class _Job:
    method: Method
    model: nn.Module
    graph: Graph
    space: SearchSpace
    data: Any
    budget: Budget
    config: RivalConfig
    loss: Loss | None

    def run(self) -> _Outcome:
        """Architecture, ranked model and numbers for the record."""
        if self.method == "uniform":
            return (
                uniform(self.graph, self.space, self.budget),
                self._ranked(channel_importance(self.model, self.graph)),
                {},
            )
        if self.method == "sfp":
            return self._softly()
        if self.method in ("random", "evolution"):
            return self._trials()
        importance, details = self._importance()
        architecture = allocate(importance, self.graph, self.space, self.budget, self.config.allocation)
        return architecture, self._ranked(importance), details

    def _ranked(self, importance: Importance) -> nn.Module:
        return evaluating(ranked(self.model, self.graph, importance))

    def _importance(self) -> tuple[Importance, dict[str, Any]]:
        model, graph = self.model, self.graph
        if self.method == "taylor":
            work, source = self._prepared()
            batches = self._batches(source, 0, self.config.calibration_batches, work)
            with own_randomness():
                seed_everything(self.config.seed)  # data sets of the user may draw from the global generators
                return taylor_importance(work, graph, batches(), self._task_loss), {"batches": len(list(batches()))}
        details = {}
        if self.method == "bn_scale":
            details["widths_by_l2"] = len(graph.widths) - len(batch_norm_scales(model, graph))
        return channel_importance(model, graph, cast(WeightCriterion, self.method)), details

    def _trials(self) -> _Outcome:
        config = self.config
        work, source = self._prepared()
        full = ranked(work, self.graph, channel_importance(work, self.graph))
        judge = Judge(
            full, self.graph,
            self._batches(source, 0, config.calibration_batches, work),
            self._batches(source, 1, config.evaluation_batches, work),
            loss=self.loss, seed=config.seed,
        )  # fmt: skip
        fitter = Fitter(self.graph, self.space, self.budget)
        with progress_bar(self.method, config.candidates) as bar:
            if self.method == "random":
                best = random_search(fitter, judge, candidates=config.candidates, seed=config.seed, bar=bar)
            else:
                best = evolve(
                    fitter, judge, candidates=config.candidates, population=config.population, seed=config.seed, bar=bar
                )
        details = {
            "candidates": config.candidates,
            "evaluations": len(judge.scores),
            "best_score": round(judge.scores[best], 5),
            "mean_score": round(float(np.mean(list(judge.scores.values()))), 5),
        }
        return best, self._ranked(channel_importance(self.model, self.graph)), details

    def _softly(self) -> _Outcome:
        config, architecture = self.config, uniform(self.graph, self.space, self.budget)
        work, source = self._prepared()
        trained = train_softly(
            work, self.graph, architecture, source,
            epochs=config.sfp_epochs, batch_size=config.batch_size, learning_rate=config.sfp_learning_rate,
            seed=config.seed, loss=self.loss,
        )  # fmt: skip
        trained.to(next(self.model.parameters()).device)
        full = ranked(trained, self.graph, filter_norms(trained, self.graph))
        return architecture, full, {"epochs": config.sfp_epochs}

    def _prepared(self) -> tuple[nn.Module, Source]:
        """A copy of the model on the device to work on, and the data, both known to fit."""
        source = as_source(self.data)
        work = copy.deepcopy(self.model).to(join())
        require_fit_for_data(work, source, loss=self.loss, metric=self.loss, trains=self.method == "sfp")
        return work, source

    def _batches(self, source: Source, half: int, count: int, model: nn.Module) -> Callable[[], Iterator[Batch]]:
        device, config = str(next(model.parameters()).device), self.config

        def read() -> Iterator[Batch]:
            batches = source.train_batches(config.batch_size, seed=config.seed, half=half, device=device)
            return islice(iter(batches), count)

        return read

    def _task_loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        return task_loss(outputs, targets, loss=self.loss, teacher_weight=0.0, temperature=1.0)


def allocate(
    importance: Importance, graph: Graph, space: SearchSpace, budget: Budget, allocation: Allocation = "threshold"
) -> Architecture:
    """The sizes that an importance of channels asks for under a budget; all blocks stay.

    Within a width the most important channels stay. Between widths, importance is divided by its mean over the width,
    so that every width has as much as it has channels: criteria depend on the scale of a layer.

    Args:
        importance: by width name, (channels,).
        graph: of the model.
        space: the candidates.
        budget: to hold.
        allocation: see `RivalConfig`.

    Raises:
        BudgetError: nothing with all blocks kept fits.

    Source:
        Mean normalisation: Fang et al., "DepGraph", CVPR 2023, section 3.3, https://arxiv.org/abs/2301.12900.
    """
    if allocation == "uniform":
        return uniform(graph, space, budget)
    normal = {name: values / max(values.mean(), 1e-30) for name, values in importance.items()}
    if allocation == "threshold":
        return above_threshold(normal, graph, space, budget)
    only = widths_alone(space)
    scores: dict[str, list[float]] = {name: [0.0] for name in only.depths}
    for name, sizes in only.widths.items():
        kept = np.cumsum(np.sort(normal[name])[::-1])
        scores[name] = [float(kept[size - 1]) for size in sizes]
    return decode(scores, graph, only, budget)
