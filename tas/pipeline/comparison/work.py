"""One job of a comparison: train the teacher, time an epoch, choose an architecture, or train and test one cell."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.data import Source, as_source
from tas.data.source import example_of
from tas.distributed import join
from tas.errors import RunError, TrainingError
from tas.graph import Graph
from tas.nn.modes import evaluating
from tas.options import plain
from tas.pipeline.comparison.methods import read_transfer, with_transfer
from tas.pipeline.comparison.plan import CompareConfig, Job
from tas.pipeline.compress import CompressConfig, find_architecture, open_choices
from tas.pipeline.derive import derive
from tas.pipeline.measure import count_macs, evaluate
from tas.pipeline.rivals import choose
from tas.pipeline.store import save_full
from tas.pipeline.train import TrainConfig, train
from tas.record import Record, versions
from tas.run import ARCHITECTURE, FULL_WEIGHTS, RECORD, read_as, read_text
from tas.space import SearchSpace
from tas.storage import fill, write_text
from tas.task import Loss, Metric, dtype_of, run_model, task_loss

RANKED_WEIGHTS = "ranked.safetensors"
TIMED_STEPS, WARM_UP_STEPS = 20, 3  # of the clock


@dataclass
class Bench:
    """What every job of a worker needs, made once.

    Attributes:
        model: the full model as given.
        source: of the data.
        config: of the comparison.
        folder: of the comparison.
        train_teacher: the model has to be trained first.
        loss: (outputs, targets) to a scalar.
        metric: (outputs, targets) to a number.
    """

    model: nn.Module
    source: Source
    config: CompareConfig
    folder: Path
    train_teacher: bool = False
    loss: Loss | None = None
    metric: Metric | None = None
    _choices: dict[str, tuple[Graph, SearchSpace]] = field(default_factory=dict)

    @property
    def example(self) -> Tensor:
        """One input, batch first."""
        return example_of(self.source, dtype_of(self.model))

    def choices(self, job: CompressConfig) -> tuple[Graph, SearchSpace]:
        """Graph and space under the options of a method, traced once."""
        options = plain(job)
        key = json.dumps([options[name] for name in ("keep", "residuals", "space")], default=str)
        if key not in self._choices:
            self._choices[key] = open_choices(self.model, self.example, job)
        return self._choices[key]

    def passes(self, job: CompressConfig) -> float:
        """Passes over the training set that a search of ours plans to make, to a hundredth."""
        return round(job.search.passes(*self._reading(job), self.choices(job)[1]), 2)

    def passes_of(self, job: CompressConfig, record: Record) -> float:
        """Passes that it has made, to a hundredth."""
        return round(job.search.passes_of(record.rows, *self._reading(job)), 2)

    def _reading(self, job: CompressConfig) -> tuple[int, int]:
        """Images that a pass of the search reads, and images in a batch, of which a loader has a size of its own."""
        batches = self.source.train_batches(job.search.batch_size)
        size = len(next(iter(batches))[0])
        return len(batches) * size, size

    def teacher(self) -> nn.Module:
        """A copy of the trained full model."""
        return self.filled(self.folder / FULL_WEIGHTS) if self.train_teacher else evaluating(copy.deepcopy(self.model))

    def filled(self, path: Path) -> nn.Module:
        """A copy of the full model with the weights of a file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        model = copy.deepcopy(self.model)
        try:
            fill(model, load_file(path))
        except (OSError, SafetensorError, ValueError) as error:
            raise RunError(f"{path} cannot be used ({error}); delete its folder's results and resume") from error
        return evaluating(model)

    def checkpoint(self, job: Job) -> Path:
        """Where the state of an unfinished job lies."""
        return self.folder / "checkpoints" / f"{job.kind}-{job.name}.pt"


def open_bench(build: Callable[[], tuple[nn.Module, Any]], **options: Any) -> Bench:
    """A bench whose model and data are built where it stands: in a worker process."""
    model, data = build()
    return Bench(model, as_source(data), **options)


def do(bench: Bench, job: Job) -> None:
    """Do one job and leave its file."""
    torch.manual_seed(job.seed)
    work = {"teacher": _full_model, "clock": _clock, "search": _search, "cell": _cell}[job.kind]
    found = {**work(bench, job), "versions": versions()}
    write_text(job.path(bench.folder), json.dumps(found, indent=1) + "\n")
    for file in (bench.checkpoint(job), bench.checkpoint(job).with_suffix(".jsonl")):
        file.unlink(missing_ok=True)


def _full_model(bench: Bench, job: Job) -> dict[str, Any]:
    model, record = copy.deepcopy(bench.model), Record(bench.checkpoint(job).with_suffix(".jsonl"))
    if bench.train_teacher:
        model = train(
            model, bench.source, config=bench.config.job.teacher, loss=bench.loss, record=record,
            checkpoint=bench.checkpoint(job), stage="teacher",
        )  # fmt: skip
        save_full(bench.folder / FULL_WEIGHTS, model)
    model.to(join())
    epochs = bench.config.job.teacher.epochs if bench.train_teacher else 0
    return {**_profile(bench, model), "epochs": epochs, "seconds": round(record.seconds("teacher"), 3)}


def _profile(bench: Bench, model: nn.Module) -> dict[str, Any]:
    quality = evaluate(model, bench.source, metric=bench.metric)
    if not math.isfinite(quality):  # it has no mean, and JSON has no word for it
        raise TrainingError(
            f"the metric of the trained network is {quality} on the test set; let it give a finite number, then resume"
        )
    return {
        "accuracy": quality,
        "macs": count_macs(model, bench.example),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }


def _clock(bench: Bench, job: Job) -> dict[str, Any]:
    config = bench.config.job.train
    step, count = time_step(bench.teacher(), bench.source, config, loss=bench.loss)
    return {"seed": job.seed, "seconds": round(step * count, 4), "step_seconds": round(step, 6), "steps": count}


def time_step(model: nn.Module, source: Source, config: TrainConfig, *, loss: Loss | None) -> tuple[float, int]:
    """Median seconds of a few training steps of a model against the labels, and how many steps an epoch has."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1e-6, momentum=config.momentum, nesterov=config.momentum > 0)
    times, epoch = [], 0
    while len(times) < WARM_UP_STEPS + TIMED_STEPS:
        batches = source.train_batches(config.batch_size, seed=config.seed, epoch=epoch, device=device)
        for inputs, targets in batches:
            started = time.perf_counter()
            outputs = run_model(model, inputs)
            value = task_loss(outputs, targets, loss=loss, teacher_weight=0.0, temperature=1.0)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
            if len(times) >= WARM_UP_STEPS + TIMED_STEPS:
                break
        epoch += 1
    return median(times[WARM_UP_STEPS:]), len(source.train_batches(config.batch_size))


def _search(bench: Bench, job: Job) -> dict[str, Any]:
    assert job.method is not None
    assert job.budget is not None
    folder, method, own = job.path(bench.folder).parent, job.method, job.method.job(bench.config.job, job.seed)
    graph, space = bench.choices(own)
    if method.is_searched:
        record = Record(folder / RECORD)
        before, started = record.seconds("search"), time.perf_counter()
        model, found = find_architecture(
            bench.teacher(), graph, space, bench.source, budget=job.budget, config=own, loss=bench.loss, record=record,
            checkpoint=bench.checkpoint(job),
        )  # fmt: skip
        architecture = found.architecture
        seconds, epochs, details = before + time.perf_counter() - started, bench.passes_of(own, record), {}
    else:
        settings = method.rival(bench.config.rivals, job.seed)
        choice = choose(
            method.name, bench.teacher(), graph, space, bench.source, budget=job.budget, config=settings,
            loss=bench.loss,
        )  # fmt: skip
        model, architecture, seconds, details = choice.model, choice.architecture, choice.seconds, choice.details
        epochs = float(details.get("epochs", 0))
    limits = job.budget.limits(graph)
    costs = {name: graph.cost(name).exact(architecture) for name in limits}
    if not job.budget.holds(graph, architecture):
        raise RunError(f"method {method.label} chose an architecture that costs {costs}, over the budget of {limits}")
    save_full(folder / RANKED_WEIGHTS, model)
    write_text(folder / ARCHITECTURE, architecture.to_json())
    return {
        "method": method.label, "seed": job.seed, "budget": job.budget.amounts, "limits": limits, "costs": costs,
        "seconds": round(seconds, 3), "epochs": epochs, "details": _jsonable(details),
    }  # fmt: skip


def _jsonable(details: Any) -> Any:
    return json.loads(json.dumps(details, default=str))


def _cell(bench: Bench, job: Job) -> dict[str, Any]:
    assert job.method is not None
    assert job.transfer is not None
    assert isinstance(job.budget, Budget)
    search, method, own = bench.folder / job.needs[0], job.method, job.method.job(bench.config.job, job.seed)
    graph, _ = bench.choices(own)
    choice = json.loads(read_text(search))
    architecture = graph.check(read_as(search.parent / ARCHITECTURE, Architecture.from_json))
    inherits, transfer = read_transfer(job.transfer)
    model = bench.filled(search.parent / RANKED_WEIGHTS) if inherits else bench.model
    weights = own.init if inherits else "fresh"
    small = derive(model, graph, architecture, weights=weights, data=bench.source, seed=job.seed)
    epochs = bench.config.epochs_after(choice["epochs"], method)
    config = with_transfer(own.train, transfer, epochs)
    record = Record(bench.checkpoint(job).with_suffix(".jsonl"))
    small = train(
        small, bench.source, teacher=bench.teacher() if config.uses_teacher else None, config=config, loss=bench.loss,
        record=record, checkpoint=bench.checkpoint(job),
    )  # fmt: skip
    rows = [{name: value for name, value in row.items() if name != "stage"} for row in record.epochs("train")]
    return {
        "method": method.label, "budget": job.budget.amounts, "transfer": job.transfer, "seed": job.seed,
        **_profile(bench, small), "train_epochs": epochs, "train_seconds": round(record.seconds("train"), 3),
        "search_epochs": choice["epochs"], "search_seconds": choice["seconds"],
        "architecture": architecture.to_dict(),
        "device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads(),
        "epochs": rows,
    }  # fmt: skip
