"""From scores or a search to a small network that is trained, measured, saved and reported: once per budget."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.columns import columns
from tas.data import Source
from tas.distributed import from_main
from tas.graph import Graph
from tas.nn.supernet import Supernet
from tas.pipeline.compress.config import CompressConfig
from tas.pipeline.derive import derive
from tas.pipeline.measure import evaluate, measure_side_by_side
from tas.pipeline.rank import rank
from tas.pipeline.report import report
from tas.pipeline.search import SearchResult, search
from tas.pipeline.store import load, load_graph, save
from tas.pipeline.train import train
from tas.profile import Profile, compared
from tas.record import Record, versions
from tas.run import SCORES, STAGES, SUMMARY, RunFolder, read_summary
from tas.scores import Scores
from tas.space import SearchSpace
from tas.task import Loss, Metric


@dataclass(frozen=True)
class CompressResult:
    """What `compress` made.

    Attributes:
        model: the small network, trained, in evaluation mode.
        architecture: its sizes.
        graph: of the full model.
        full: cost and quality of the full model.
        pruned: of the small one.
        summary: the content of summary.json.
        folder: where the run lies; None if nothing was written.
    """

    model: nn.Module
    architecture: Architecture
    graph: Graph
    full: Profile
    pruned: Profile
    summary: dict[str, Any]
    folder: Path | None

    def __repr__(self) -> str:
        """Full and small network side by side, and where the run lies."""
        labels = {"accuracy": self.full.metric or "accuracy", "predicted_latency_ms": "predicted latency",
                  "latency_ms": "latency"}  # fmt: skip
        found = compared(self.full.to_dict(), self.pruned.to_dict())
        rows = [(labels.get(name, name), *values, change) for name, values, change in found]
        table = columns([("CompressResult", "full", "pruned", "pruned / full"), *rows])
        return f"{table}\n\nfolder: {self.folder}" if self.folder else table


@dataclass(frozen=True)
class Job:
    """What all budgets share: the trained full model, its data and its choices, and where the model was given."""

    teacher: nn.Module
    source: Source
    example: Tensor
    graph: Graph
    space: SearchSpace
    config: CompressConfig
    loss: Loss | None
    metric: Metric | None
    place: torch.device

    @cached_property
    def full_accuracy(self) -> float:
        """Of the full model, measured once."""
        return evaluate(self.teacher, self.source, metric=self.metric)


def shrink(
    job: Job, budget: Budget, run: RunFolder, record: Record, *, since: float, scores: Scores | None = None
) -> CompressResult:
    """Search, or only try what scores ask for; derive, train, measure, save and report.

    Args:
        job: what all budgets share.
        budget: the result holds it.
        run: where it is written.
        record: of the run.
        since: `time.perf_counter()` when the run began, less what it took before it was interrupted.
        scores: of a search for all budgets; None searches for this one.
    """
    config, graph = job.config, job.graph
    ranked, found = find_architecture(
        job.teacher, graph, job.space, job.source, budget=budget, config=config, loss=job.loss, record=record,
        checkpoint=run.checkpoint("search"), scores=scores,
    )  # fmt: skip
    run.write_json(SCORES, found.scores.to_dict())
    small = derive(ranked, graph, found.architecture, weights=config.init, data=job.source, seed=config.seed)
    small = train(
        small, job.source, teacher=job.teacher, config=config.train, loss=job.loss, record=record,
        checkpoint=run.checkpoint("train"),
    )  # fmt: skip
    full, pruned = from_main(_profiles)(job, small, found.architecture)
    summary = _summary(full, pruned, budget, record, time.perf_counter() - since, config.seed)
    from_main(_write)(run, small, graph, found.architecture, summary)
    return CompressResult(small, found.architecture, graph, full, pruned, summary, run.path)


def _write(run: RunFolder, small: nn.Module, graph: Graph, architecture: Architecture, summary: dict[str, Any]) -> None:
    if run.path is not None:
        save(run.path, small, graph, architecture)
        run.write_json(SUMMARY, summary)
        report(run.path)
        run.drop_checkpoints()


def finished(job: Job, folder: Path) -> CompressResult:
    """What a finished run has made, from its files."""
    graph, architecture = load_graph(folder)
    summary = read_summary(folder)
    full, pruned = (Profile(**summary[name]) for name in ("full", "pruned"))
    return CompressResult(load(folder, job.teacher), architecture, graph, full, pruned, summary, folder)


def find_architecture(
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    source: Source,
    *,
    budget: Budget,
    config: CompressConfig,
    loss: Loss | None = None,
    record: Record | None = None,
    checkpoint: Path | None = None,
    scores: Scores | None = None,
) -> tuple[nn.Module, SearchResult]:
    """Search the sizes of a trained model.

    Args:
        model: the full, trained model; not changed. It teaches the search where `config.search` says so.
        graph: of the model.
        space: of the graph.
        source: the search sees its training set only.
        budget: the result holds it.
        config: its `search`, `execution` and `init` count.
        loss: (outputs, targets) to a scalar.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch.
        scores: of a search for another budget, as in `search`.

    Returns:
        The full model whose first channels the small one inherits, and what was found.
    """
    ranked = rank(model, graph) if config.init in ("inherit", "reconstruct") else model
    supernet = Supernet(ranked, graph, space, execution=config.execution)
    return ranked, search(
        supernet, source, budget=budget, config=config.search, teacher=model, loss=loss, record=record,
        checkpoint=checkpoint, scores=scores,
    )  # fmt: skip


def _summary(
    full: Profile, pruned: Profile, budget: Budget, record: Record, seconds: float, seed: int
) -> dict[str, Any]:
    stages: Mapping[str, float] = {stage: round(record.seconds(stage), 1) for stage in STAGES}
    return {
        "full": full.to_dict(),
        "pruned": pruned.to_dict(),
        "budget": budget.amounts,
        "seconds": {**stages, "total": round(seconds, 1)},
        "seed": seed,
        "versions": versions(),
    }


def _profiles(job: Job, small: nn.Module, architecture: Architecture) -> tuple[Profile, Profile]:
    graph, home = job.graph, next(small.parameters()).device
    job.teacher.to(home)  # search and training have taken copies
    accuracies = job.full_accuracy, evaluate(small, job.source, metric=job.metric)
    place = job.place if graph.latency else home  # a budget of latency is one of that device
    costs = measure_side_by_side(
        [job.teacher.to(place), small.to(place)], example=job.example, metric=job.metric,
        latency_batch=job.config.latency_batch, threads=graph.latency.threads if graph.latency else 0,
        clock=job.config.latency.clock if graph.latency else "wall",
        runtime=graph.latency.runtime if graph.latency else "pytorch",
    )  # fmt: skip
    small.to(home)
    full, pruned = (replace(cost, accuracy=accuracy) for cost, accuracy in zip(costs, accuracies, strict=True))
    if graph.latency is None:
        return full, pruned
    before, after = graph.full_cost("latency"), graph.cost("latency").exact(architecture)
    return (
        replace(full, predicted_latency_ms=round(before / 1e6, 4)),
        replace(pruned, predicted_latency_ms=round(after / 1e6, 4)),
    )
