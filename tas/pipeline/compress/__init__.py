"""The whole job: trace, rank, search, derive, distil, measure, save, report."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from tas.budget import Amount, Budget, Budgets, require_distinct
from tas.data import Source, as_source
from tas.data.sharding import sharded
from tas.data.source import example_of
from tas.distributed import from_main, join
from tas.errors import DataError
from tas.graph import Graph
from tas.options import or_default, plain, to_yaml
from tas.pipeline.compress.config import CompressConfig, short_search, short_teacher, short_train
from tas.pipeline.compress.stages import CompressResult, Job, find_architecture, finished, shrink
from tas.pipeline.latency import latency_of_run
from tas.pipeline.report import report
from tas.pipeline.store import require_storable, save_full
from tas.pipeline.trace import trace
from tas.pipeline.train import train
from tas.record import Record, versions
from tas.run import (
    CONFIG,
    FULL_WEIGHTS,
    GRAPH,
    PAGE,
    REPORT,
    SCORES,
    STAGES,
    SUMMARIES,
    SUMMARY,
    RunFolder,
    is_finished,
)
from tas.scores import Scores
from tas.space import SearchSpace
from tas.task import Loss, Metric, dtype_of, require_fit_for_data, require_fit_for_test
from tas.trackers import require_tracker, tracked

__all__ = [
    "CompressConfig",
    "CompressResult",
    "compress",
    "find_architecture",
    "open_choices",
    "require_halves",
    "short_search",
    "short_teacher",
    "short_train",
]
OneBudget = Budget | Amount | Mapping[str, Amount]


@overload
def compress(
    model: nn.Module,
    data: Any,
    *,
    budget: OneBudget = ...,
    config: CompressConfig | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    example: Tensor | None = None,
    train_teacher: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    origin: Mapping[str, Any] | None = None,
    tracker: str | None = None,
) -> CompressResult: ...


@overload
def compress(
    model: nn.Module,
    data: Any,
    *,
    budget: Sequence[OneBudget],
    config: CompressConfig | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    example: Tensor | None = None,
    train_teacher: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    origin: Mapping[str, Any] | None = None,
    tracker: str | None = None,
) -> list[CompressResult]: ...


def compress(
    model: nn.Module,
    data: Any,
    *,
    budget: OneBudget | Sequence[OneBudget] = "50%",
    config: CompressConfig | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    example: Tensor | None = None,
    train_teacher: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    origin: Mapping[str, Any] | None = None,
    tracker: str | None = None,
) -> CompressResult | list[CompressResult]:
    """Shrink a trained model to a budget and keep its accuracy.

    Of several processes all must call it; the main one alone writes, and all get the same result.

    A list of budgets gives a small network each from one search: saliency and epochs run once, at the middle budget;
    successive halving and training are each budget's own. A folder per budget lies inside `output`, with a page that
    compares them.

    Args:
        model: the full, trained model; not changed. It is the teacher of the small one.
        data: a `tas.data` source, or a pair of loaders (training, test) yielding (inputs, targets).
        budget: `"50%"`, `0.5` or `20e6` of macs, `"3ms"`, `{"params": "30%"}`, or a `Budget`; or a list of those.
        config: see `CompressConfig`.
        output: folder for the results; None writes nothing.
        resume: go on with an interrupted run in that folder.
        example: one input, batch first; taken from the data by default.
        train_teacher: train the full model first, by `config.teacher`.
        loss: (outputs, targets) to a scalar, for tasks other than classification.
        metric: (outputs, targets) to a number, the larger the better; percentage of right classes by default.
        origin: further entries of config.yaml: where model and data came from.
        tracker: where the numbers of every epoch go as well: tensorboard, wandb or another that accelerate knows.

    Returns:
        What was made; of a list of budgets, a list in the same order.

    Raises:
        BudgetError: a budget cannot be held, or stands in the list twice; known before any training, as what follows.
        ConfigError: a pattern of `keep` or of the space matches nothing, or the tracker is not there.
        ModelError: the model cannot be captured, stored, does not accept the data, or is frozen as a whole.
        DataError: the training set cannot be halved, or does not fit the model, the loss and the metric.
        RunError: the output folder is in use.

    Example:
        result = tas.compress(model, (train_loader, test_loader), budget="50%", output="runs/mine")
        small, smaller = tas.compress(model, data, budget=["50%", "30%"], output="runs/both")
    """
    config, started = or_default(config, CompressConfig), time.perf_counter()
    is_list = isinstance(budget, list | tuple)
    budgets = [Budget.of(one) for one in (budget if is_list else [budget])]  # type: ignore[union-attr, arg-type]
    require_distinct(budgets)
    require_tracker(tracker)
    join()  # from here on, processes know of each other
    source = as_source(data)
    if example is None:
        example = example_of(source, dtype_of(model))
    graph, space = open_choices(model, example, config)
    if output is not None:
        require_storable(model)
    teacher, place = copy.deepcopy(model), next(model.parameters()).device
    _require_possible(teacher, source, config, loss, metric, train_teacher=train_teacher)
    _warn_of_frozen(teacher, graph)
    if any(one.latency is not None for one in budgets):
        graph = from_main(latency_of_run)(
            teacher, graph, space, example, batch=config.latency_batch, budgets=budgets, config=config.latency,
            folder=output if resume else None,
        )  # fmt: skip
    for one in budgets:
        one.require_reachable(graph, space)
    results = (SUMMARY, REPORT) if len(budgets) == 1 else (SUMMARIES, PAGE)
    run = RunFolder.open(output, _settings(config, budgets, origin), resume=resume, results=results)
    record = run.record()
    since = started - sum(map(record.seconds, STAGES))  # of an interrupted start
    if not record.rows:
        record.add("start", seed=config.seed, versions=versions())
    run.write_json(GRAPH, graph.to_dict())
    with tracked(record, tracker, folder=run.path, settings=plain(config)):
        if train_teacher:
            teacher = train(
                teacher, source, config=config.teacher, loss=loss, record=record, checkpoint=run.checkpoint("teacher"),
                stage="teacher",
            )  # fmt: skip
            if run.path is not None:
                from_main(save_full)(run.path / FULL_WEIGHTS, teacher)
        job = Job(teacher, source, example, graph, space, config, loss, metric, place)
        if len(budgets) == 1:
            made = shrink(job, budgets[0], run, record, since=since)
            return [made] if is_list else made
        scores = _scores_for_all(job, budgets, run, record)
    return _shrink_to_each(job, budgets, run, record, scores, origin=origin, tracker=tracker)


def _require_possible(
    model: nn.Module,
    source: Source,
    config: CompressConfig,
    loss: Loss | None,
    metric: Metric | None,
    *,
    train_teacher: bool,
) -> None:
    """What the data could not do at the end of a run is refused before it begins."""
    require_fit_for_data(
        model, source, loss=loss, metric=metric, transfer=config.train.transfer, layers=config.train.layers
    )
    require_fit_for_test(model, source, metric)
    require_halves(source)
    for stage in (config.search, config.train, *([config.teacher] if train_teacher else [])):
        sharded(source).train_batches(stage.batch_size)  # raises where several processes cannot share a batch


def _scores_for_all(job: Job, budgets: Sequence[Budget], run: RunFolder, record: Record) -> Scores:
    """Search once, at the middle budget (of two, the tighter): where the search has epochs, they depend on it."""
    middle = sorted(budgets, key=lambda budget: budget.tightness(job.graph))[(len(budgets) - 1) // 2]
    _, found = find_architecture(
        job.teacher, job.graph, job.space, job.source, budget=middle,
        config=replace(job.config, search=replace(job.config.search, architectures=0)), loss=job.loss, record=record,
        checkpoint=run.checkpoint("search"),
    )  # fmt: skip
    run.write_json(SCORES, found.scores.to_dict())
    return found.scores


def _shrink_to_each(
    job: Job,
    budgets: Sequence[Budget],
    run: RunFolder,
    shared: Record,
    scores: Scores,
    *,
    origin: Mapping[str, Any] | None,
    tracker: str | None,
) -> list[CompressResult]:
    """A run per budget, each in a folder inside; finished ones are read, an interrupted one goes on."""
    made = []
    for budget in budgets:
        folder = run.path / budget.name if run.path else None
        if folder and is_finished(folder):
            made.append(finished(job, folder))
            continue
        started, settings = time.perf_counter(), _settings(job.config, [budget], origin)
        goes_on = from_main(Path.is_file)(folder / CONFIG) if folder else False
        part = RunFolder.open(folder, settings, resume=goes_on)
        record = part.record()
        for row in shared.rows[len(record.rows) :]:  # what it took to get here belongs to every run
            record.add(**row)
        part.write_json(GRAPH, job.graph.to_dict())
        since = started - sum(map(record.seconds, STAGES))
        with tracked(record, tracker, folder=part.path, settings=plain(job.config)):
            made.append(shrink(job, budget, part, record, since=since, scores=scores))
    from_main(_finish_all)(run, {budget.name: one.summary for budget, one in zip(budgets, made, strict=True)})
    return made


def _finish_all(run: RunFolder, summaries: dict[str, Any]) -> None:
    if run.path is not None:
        run.write_json(SUMMARIES, summaries)
        report(run.path)
        run.drop_checkpoints()


def open_choices(model: nn.Module, example: Tensor, config: CompressConfig) -> tuple[Graph, SearchSpace]:
    """What can be chosen in a model, as `config` allows.

    Args:
        model: the full model.
        example: one input, batch first.
        config: its `keep`, `residuals` and `space` count.
    """
    graph = trace(model, example, keep=config.keep, residuals=config.residuals)
    return graph, SearchSpace.of(graph, config.space)


def require_halves(source: Source) -> None:
    """The search needs two halves: better to know before a teacher is trained."""
    if any(len(source.train_batches(2, half=half)) == 0 for half in (0, 1)):
        raise DataError(f"{source.name} has too few images for a search; each half of the training set needs a batch")


def _warn_of_frozen(model: nn.Module, graph: Graph) -> None:
    cut = {item.name for layer in graph.layers for item in layer.parameters if any(item.layouts)}
    frozen = sum(
        parameter.numel() for name, parameter in model.named_parameters() if name in cut and not parameter.requires_grad
    )
    if frozen:
        warnings.warn(
            f"{frozen:,} parameters are frozen (requires_grad is False) and stay so: what is cut there cannot learn to "
            f"make up for it; call model.requires_grad_(True) to let it",
            stacklevel=3,
        )


def _settings(config: CompressConfig, budgets: Sequence[Budget], origin: Mapping[str, Any] | None) -> str:
    return to_yaml({**(origin or {}), "budget": asdict(Budgets.of(budgets)), **config.to_dict()})
