"""The whole job: trace, rank, search, derive, distil, measure, save, report."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.data import Source, as_source
from tas.errors import DataError
from tas.graph import Graph
from tas.nn.supernet import Supernet
from tas.options import check_options, plain, split_patterns
from tas.pipeline.derive import derive
from tas.pipeline.latency import LatencyConfig, known_latency, with_latency
from tas.pipeline.measure import measure_side_by_side
from tas.pipeline.rank import rank
from tas.pipeline.report import report
from tas.pipeline.search import SearchConfig, search
from tas.pipeline.store import save
from tas.pipeline.trace import trace
from tas.pipeline.train import TrainConfig, train
from tas.profile import Profile
from tas.record import Record, versions
from tas.run import GRAPH, STAGES, SUMMARY, RunFolder
from tas.space import SearchSpace, SpaceConfig
from tas.task import Loss, Metric, dtype_of, require_fit_for_data
from tas.trackers import tracked


def short_search() -> SearchConfig:
    """Search settings for a trained start: measured saliency, then trials. LOG.md, 2026-11-25, says what was tried."""
    return SearchConfig(
        epochs=0, batch_size=64, start="trained", logits_start="saliency", trials=8, learning_rate=0.035,
        held_out_images=384,
        depth_samples="drawn", interpolation="none", logits_learning_rate="auto", logits_weight_decay=0.0,
        temperature_start=5.0, temperature_end=0.5, teacher_weight=0.9,
    )  # fmt: skip


def short_train() -> TrainConfig:
    """Training settings for inherited weights."""
    return TrainConfig(epochs=30, warmup_epochs=1, batch_size=64, learning_rate=0.05)


def short_teacher() -> TrainConfig:
    """Training settings for a teacher of one's own."""
    return TrainConfig(epochs=20, warmup_epochs=1, batch_size=64, learning_rate=0.1)


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """How the whole job runs; the defaults are short, for a trained start.

    Attributes:
        search: see `SearchConfig`.
        train: see `TrainConfig`; of the small network.
        teacher: see `TrainConfig`; of the full model, when it has to be trained first.
        space: see `SpaceConfig`; which sizes may be chosen.
        keep: modules to leave alone, as in `trace`.
        residuals: tied or free, as in `trace`.
        execution: of the supernet; both compute the same, compact is faster on a CPU.
        init: the small network inherits the ranked channels of the full one, averages neighbouring channels of it, or
            starts fresh as in the paper.
        latency_batch: samples in the timed forward pass.
        latency: see `LatencyConfig`; how it is predicted where a budget bounds it.
        seed: takes the place of every stage's own seed.
    """

    search: SearchConfig = field(default_factory=short_search)
    train: TrainConfig = field(default_factory=short_train)
    teacher: TrainConfig = field(default_factory=short_teacher)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    keep: tuple[str, ...] = ()
    residuals: Literal["tied", "free"] = "tied"
    execution: Literal["compact", "dense"] = "compact"
    init: Literal["inherit", "interpolate", "fresh"] = "inherit"
    latency_batch: int = 1
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    seed: int = 0

    def __post_init__(self):
        check_options(self, "compress", above_zero=("latency_batch",))
        for stage in ("search", "train", "teacher"):
            object.__setattr__(self, stage, replace(getattr(self, stage), seed=self.seed))
        object.__setattr__(self, "keep", split_patterns(self.keep))


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


def compress(
    model: nn.Module,
    data: Any,
    *,
    budget: Budget | Amount | dict[str, Amount] = "50%",
    config: CompressConfig | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    example: Tensor | None = None,
    train_teacher: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    origin: Mapping[str, Any] | None = None,
    tracker: str | None = None,
) -> CompressResult:
    """Shrink a trained model to a budget and keep its accuracy.

    Args:
        model: the full, trained model; not changed. It is the teacher of the small one.
        data: a `tas.data` source, or a pair of loaders (training, test) yielding (inputs, targets).
        budget: `"50%"`, `0.5` or `20e6` of macs, `"3ms"`, `{"params": "30%"}`, or a `Budget`.
        config: see `CompressConfig`.
        output: folder for the results; None writes nothing.
        resume: go on with an interrupted run in that folder.
        example: one input, batch first; taken from the data by default.
        train_teacher: train the full model first, by `config.teacher`.
        loss: (outputs, targets) to a scalar, for tasks other than classification.
        metric: (outputs, targets) to a number, the larger the better; percentage of right classes by default.
        origin: further entries of config.yaml: where model and data came from.
        tracker: where the numbers of every epoch go as well: tensorboard, wandb or another that accelerate knows.

    Raises:
        BudgetError: the budget cannot be held; known before any training, as what follows.
        ConfigError: a pattern of `keep` or of the space matches nothing, or the tracker is not there.
        ModelError: the model cannot be captured, does not accept the data, or is frozen as a whole.
        DataError: the training set cannot be halved, or does not fit the model, the loss and the metric.
        RunError: the output folder is in use.

    Example:
        result = tas.compress(model, (train_loader, test_loader), budget="50%", output="runs/mine")
    """
    config, budget, started = config or CompressConfig(), Budget.of(budget), time.perf_counter()
    source = as_source(data)
    if example is None:
        example = torch.zeros(1, *source.input_shape, dtype=dtype_of(model))
    graph, space = open_choices(model, example, config)
    teacher = copy.deepcopy(model)
    require_fit_for_data(
        teacher, source, loss=loss, metric=metric, transfer=config.train.transfer, layers=config.train.layers
    )
    require_halves(source)
    _warn_of_frozen(teacher)
    if budget.latency is not None:  # a run that goes on keeps its own measurements: times never repeat exactly
        known = known_latency(output) if resume else None
        graph = (
            replace(graph, latency=known)
            if known
            else with_latency(teacher, graph, space, example, batch=config.latency_batch, config=config.latency)
        )
    budget.require_reachable(graph, space)
    run = RunFolder.open(output, _settings(config, budget, origin), resume=resume)
    record = run.record()
    before = sum(map(record.seconds, STAGES))  # of an interrupted start
    if not record.rows:
        record.add("start", seed=config.seed, versions=versions())
    run.write_json(GRAPH, graph.to_dict())
    with tracked(record, tracker, folder=run.path, settings=plain(config)):
        if train_teacher:
            teacher = train(
                teacher, source, config=config.teacher, loss=loss, record=record, checkpoint=run.checkpoint("teacher"),
                stage="teacher",
            )  # fmt: skip
        ranked, architecture = find_architecture(
            teacher, graph, space, source, budget=budget, config=config, loss=loss, record=record,
            checkpoint=run.checkpoint("search"),
        )  # fmt: skip
        small = derive(ranked, graph, architecture, weights=config.init, seed=config.seed)
        small = train(
            small,
            source,
            teacher=teacher,
            config=config.train,
            loss=loss,
            record=record,
            checkpoint=run.checkpoint("train"),
        )
    full, pruned = measure_side_by_side(
        [teacher, small], source, example=example, metric=metric, latency_batch=config.latency_batch
    )
    if graph.latency is not None:
        full, pruned = (
            replace(profile, predicted_latency_ms=round(graph.cost("latency").exact(sizes) / 1e6, 4))
            for profile, sizes in ((full, graph.full), (pruned, architecture))
        )
    summary = _summary(full, pruned, budget, record, before + time.perf_counter() - started, config.seed)
    if run.path is not None:
        save(run.path, small, graph, architecture)
        run.write_json(SUMMARY, summary)
        report(run.path)
        run.drop_checkpoints()
    return CompressResult(small, architecture, graph, full, pruned, summary, run.path)


def open_choices(model: nn.Module, example: Tensor, config: CompressConfig) -> tuple[Graph, SearchSpace]:
    """What can be chosen in a model, as `config` allows.

    Args:
        model: the full model.
        example: one input, batch first.
        config: its `keep`, `residuals` and `space` count.
    """
    graph = trace(model, example, keep=config.keep, residuals=config.residuals)
    return graph, SearchSpace.of(graph, config.space)


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
) -> tuple[nn.Module, Architecture]:
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

    Returns:
        The full model whose first channels the small one inherits, and the architecture.
    """
    ranked = rank(model, graph) if config.init == "inherit" else model
    supernet = Supernet(ranked, graph, space, execution=config.execution)
    found = search(
        supernet, source, budget=budget, config=config.search, teacher=model, loss=loss, record=record,
        checkpoint=checkpoint,
    )  # fmt: skip
    return ranked, found.architecture


def require_halves(source: Source) -> None:
    """The search needs two halves: better to know before a teacher is trained."""
    if any(len(source.train_batches(2, half=half)) == 0 for half in (0, 1)):
        raise DataError(f"{source.name} has too few images for a search; each half of the training set needs a batch")


def _warn_of_frozen(model: nn.Module) -> None:
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    if frozen:
        warnings.warn(
            f"{frozen:,} parameters are frozen (requires_grad is False) and stay so: what is cut there cannot learn to "
            f"make up for it; call model.requires_grad_(True) to let it",
            stacklevel=3,
        )


def _summary(
    full: Profile, pruned: Profile, budget: Budget, record: Record, seconds: float, seed: int
) -> dict[str, Any]:
    stages = {stage: round(record.seconds(stage), 1) for stage in STAGES}
    return {
        "full": full.to_dict(),
        "pruned": pruned.to_dict(),
        "budget": budget.amounts,
        "seconds": {**stages, "total": round(seconds, 1)},
        "seed": seed,
        "versions": versions(),
    }


def _settings(config: CompressConfig, budget: Budget, origin: Mapping[str, Any] | None) -> str:
    import yaml

    stages = plain(config)
    for stage in ("search", "train", "teacher"):
        stages[stage].pop("seed")  # one seed rules them all
    return yaml.safe_dump({**(origin or {}), "budget": asdict(budget), **stages}, sort_keys=False)
