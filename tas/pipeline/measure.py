"""What a model costs and how good it is, measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tas.data import as_source
from tas.errors import ConfigError, DataError
from tas.profile import Profile
from tas.task import Metric, accuracy, dtype_of, run_model
from tas.timing import measure_latency

__all__ = ["count_macs", "evaluate", "measure", "measure_latency"]


def measure(
    model: nn.Module,
    data: Any = None,
    *,
    example: Tensor | None = None,
    metric: Metric | None = None,
    batch_size: int = 256,
    latency_batch: int = 1,
    seconds: float = 1.0,
) -> Profile:
    """Measure multiply-adds, parameters, latency and, with data, accuracy on the test set.

    Args:
        model: any module; left in evaluation mode.
        data: a source, or a pair of loaders (training, test); None leaves the accuracy out.
        example: one input, batch first; taken from the data where there is one.
        metric: (outputs, targets) to the mean over the batch; by default the percentage of right classes.
        batch_size: samples at a time in the test.
        latency_batch: samples in the timed forward pass.
        seconds: time spent on measuring latency.

    Raises:
        DataError: neither data nor an example is given, or the data does not fit the model and the metric.
        ConfigError: latency_batch is below 1.
    """
    if latency_batch < 1:
        raise ConfigError(f"latency_batch is {latency_batch}; it must be at least 1")
    source = as_source(data) if data is not None else None
    if example is None:
        if source is None:
            raise DataError("measure needs data or an example input; give one of them")
        example = torch.zeros(1, *source.input_shape, dtype=dtype_of(model))
    (latency,) = measure_latency([model], example, batch=latency_batch, seconds=seconds)
    return Profile(
        macs=count_macs(model, example),
        params=sum(parameter.numel() for parameter in model.parameters()),
        accuracy=None if source is None else evaluate(model, source, metric=metric, batch_size=batch_size),
        latency_ms=latency[0],
        latency_spread_ms=latency[1],
        batch_size=latency_batch,
    )


@torch.no_grad()
def evaluate(model: nn.Module, data: Any, *, metric: Metric | None = None, batch_size: int = 256) -> float:
    """Mean of the metric over the test set; the percentage of right classes by default."""
    source, device = as_source(data), next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in source.test_batches(batch_size, device=str(device)):
        value = (metric or accuracy)(run_model(model, inputs), targets)
        total, count = total + float(value) * len(inputs), count + len(inputs)
    if count == 0:
        raise DataError(f"{source.name} gives no test batch; give it more samples, or smaller batches")
    return round(total / count, 4)


@torch.no_grad()
def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one sample, counted by torch's flop counter while the model runs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    own, fused = [p for p in model.parameters() if p.requires_grad], torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # neither it nor a fused attention kernel is counted
        for parameter in own:
            parameter.requires_grad_(False)  # the counter takes one that a module is called with for an activation
        with counter, sdpa_kernel(SDPBackend.MATH):
            model.eval()(example[:1].to(device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in own:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2
