"""What a model costs and how good it is, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from tas.data import as_source
from tas.data.source import example_of
from tas.errors import ConfigError, DataError
from tas.nn.counting import count_macs
from tas.nn.modes import evaluating, require_module
from tas.onnx_file import in_onnx_runtime
from tas.profile import RUNTIMES, Profile, Runtime, Timing, metric_name
from tas.task import Metric, dtype_of, right_classes, run_model
from tas.timing import Clock, device_name, measure_latency, thread_count

__all__ = ["count_macs", "evaluate", "measure", "measure_latency", "measure_side_by_side"]


def measure(
    model: nn.Module,
    data: Any = None,
    *,
    example: Tensor | None = None,
    metric: Metric | None = None,
    batch_size: int = 256,
    latency_batch: int | Sequence[int] = 1,
    seconds: float = 1.0,
    runtime: Runtime = "pytorch",
    threads: int = 0,
) -> Profile:
    """Measure multiply-adds, parameters, latency and, with data, accuracy on the test set.

    Args:
        model: any module; left in evaluation mode. It is timed on the device it lies on.
        data: a source, or a pair of loaders (training, test); None leaves the accuracy out.
        example: one input, batch first; taken from the data where there is one.
        metric: (outputs, targets) to the mean over the batch; by default the percentage of right classes.
        batch_size: samples at a time in the test.
        latency_batch: samples in the timed forward pass; several numbers are timed one after the other.
        seconds: time spent on measuring the latency of a batch size.
        runtime: what runs the timed passes and the test: pytorch, or onnxruntime, for which it is exported
            (its outputs are then a tensor, or a list of tensors).
        threads: of a pass on a CPU; 0 is as many as torch uses.

    Raises:
        DataError: neither data nor an example is given, or the data does not fit the model and the metric.
        ConfigError: an option is out of range, or ONNX Runtime is missing or cannot use the device.
        ModelError: the model does not accept the example, or cannot be written as ONNX.

    Example:
        >>> tas.measure(model, data, runtime="onnxruntime", threads=1, latency_batch=[1, 8]).timings
    """
    return measure_side_by_side(
        [model], data, example=example, metric=metric, batch_size=batch_size, latency_batch=latency_batch,
        seconds=seconds, runtime=runtime, threads=threads,
    )[0]  # fmt: skip


def measure_side_by_side(
    models: Sequence[nn.Module],
    data: Any = None,
    *,
    example: Tensor | None = None,
    metric: Metric | None = None,
    batch_size: int = 256,
    latency_batch: int | Sequence[int] = 1,
    seconds: float = 1.0,
    runtime: Runtime = "pytorch",
    threads: int = 0,
    clock: Clock = "wall",
) -> list[Profile]:
    """Measure several models that read the same, timed in turn (A B A B …).

    Arguments are those of `measure` and, of `measure_latency`, the clock.
    """
    batches = [latency_batch] if isinstance(latency_batch, int) else list(latency_batch)
    _check(batches, seconds, runtime, threads)
    for model in models:
        require_module(model)
    if len(places := {str(next(model.parameters()).device) for model in models}) > 1:
        raise ConfigError(
            f"the models lie on {' and '.join(sorted(places))}, whose times do not compare; move them to one"
        )
    source = as_source(data) if data is not None else None
    if example is None:
        if source is None:
            raise DataError("measure needs data or an example input; give one of them")
        example = example_of(source, dtype_of(models[0]))
    for model in models:
        with torch.no_grad():
            run_model(evaluating(model), example[:1].to(next(model.parameters()).device))
    with thread_count(threads):
        timed = [in_onnx_runtime(model, example) for model in models] if runtime == "onnxruntime" else models
        times = [measure_latency(timed, example, batch=batch, seconds=seconds, clock=clock) for batch in batches]
        setting = {**_setting(runtime, next(models[0].parameters()).device), "clock": clock}
        qualities = [
            None if source is None else evaluate(model, source, metric=metric, batch_size=batch_size) for model in timed
        ]
    return [
        Profile(
            macs=count_macs(model, example[:1]), params=sum(parameter.numel() for parameter in model.parameters()),
            accuracy=quality, metric=metric_name(metric), **_latencies(batches, found), **setting,
        )
        for model, quality, found in zip(models, qualities, zip(*times, strict=True), strict=True)
    ]  # fmt: skip


def _latencies(batches: Sequence[int], found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """(median, spread) per batch size, as fields of `Profile`."""
    timings = tuple(
        Timing(batch_size=batch, latency_ms=median, latency_spread_ms=spread)
        for batch, (median, spread) in zip(batches, found, strict=True)
    )
    return {**asdict(timings[0]), "timings": timings if len(timings) > 1 else ()}


def _check(batches: Sequence[int], seconds: float, runtime: str, threads: int) -> None:
    for batch in batches:
        if batch < 1:
            raise ConfigError(f"latency_batch is {batch}; it must be at least 1")
    if not batches:
        raise ConfigError("latency_batch names no batch size; give one or several, such as [1,8]")
    if not seconds > 0:
        raise ConfigError(f"seconds is {seconds}; it must be above 0")
    if threads < 0:
        raise ConfigError(f"threads is {threads}; it must not be negative, and 0 is as many as torch uses")
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime is {runtime!r}; it can be {' or '.join(RUNTIMES)}")


def _setting(runtime: Runtime, device: torch.device) -> dict[str, Any]:
    """What times depend on besides model and batch size, as fields of `Profile`."""
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return {"runtime": runtime, "device": device_name(device), "threads": threads}


@torch.no_grad()
def evaluate(model: nn.Module, data: Any, *, metric: Metric | None = None, batch_size: int = 256) -> float:
    """Mean of the metric over the test set; by default the percentage of right classes among all labels that count."""
    source, device = as_source(data), next(model.parameters()).device
    model.eval()
    total, count, batches = 0.0, 0, 0
    for inputs, targets in source.test_batches(batch_size, device=str(device)):
        outputs = run_model(model, inputs)
        if metric is None:
            value, of = right_classes(outputs, targets)
        else:
            value, of = float(metric(outputs, targets)) * len(inputs), len(inputs)
        total, count, batches = total + value, count + of, batches + 1
    if batches == 0:
        raise DataError(f"{source.name} gives no test batch; give it more samples, or smaller batches")
    if count == 0:
        raise DataError(f"every label of the test set of {source.name} is one to ignore; give it others")
    return total / count if metric else round(100 * total / count, 4)
