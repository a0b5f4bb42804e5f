"""Batch norm over the batches of all processes, on any device and for any module that calls `F.batch_norm`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tas.distributed import num_processes
from tas.nn.batch_norm import BatchNormMode

_IS_SYNCHRONIZED: ContextVar[bool] = ContextVar("is_synchronized", default=False)


@contextmanager
def synchronized_batch_norm(is_wanted: bool) -> Iterator[None]:
    """In the block, batch norms in training use the statistics of the whole batch, not of this process's share.

    `torch.nn.SyncBatchNorm` does not run on CPUs, and takes the place of the modules, which a supernet has of its own.

    Args:
        is_wanted: False does nothing, as does a single process.
    """
    if not is_wanted or num_processes() == 1:
        yield
        return
    token = _IS_SYNCHRONIZED.set(True)
    try:
        with BatchNormMode(_batch_norm):
            yield
    finally:
        _IS_SYNCHRONIZED.reset(token)


def is_synchronized() -> bool:
    """Whether batch norms must use the statistics of all processes now, and therefore call `F.batch_norm`."""
    return _IS_SYNCHRONIZED.get()


def _batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` over the batches of all processes, which are of one size."""
    if not training:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
    precise = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    mean, variance = _global_statistics(precise)
    if running_mean is not None and running_var is not None:
        count = num_processes() * inputs.numel() / inputs.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt().to(precise.dtype)
    scale = scale if weight is None else scale * weight
    shift = -mean.to(precise.dtype) * scale
    shift = shift if bias is None else shift + bias
    shape = [-1] + [1] * (inputs.dim() - 2)
    return torch.addcmul(shift.view(shape), precise, scale.view(shape)).to(inputs.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        """A sum of the same shape."""
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The other processes' losses depend on these values, too."""
        return _Sum.forward(gradients[0])


def _global_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over all processes, float64: in one message, and without cancellation."""
    dims = [0, *range(2, inputs.dim())]
    variance, mean = (value.double() for value in torch.var_mean(inputs, dims, correction=0))
    mean, square = (_Sum.apply(torch.stack([mean, variance + mean.square()])) / num_processes()).unbind()
    return mean, (square - mean.square()).clamp_min(0)
