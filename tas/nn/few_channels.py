"""Batch norm of few channels on a CPU, where torch's own is slow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge

from tas.nn.batch_norm import BatchNormMode
from tas.nn.sync_batch_norm import is_synchronized

VECTOR, CACHE_LINE = 8, 16  # floats in a register, and in what threads cannot write at the same time
MOST_CHANNELS = 32  # from there on torch's own is as fast (LOG.md, 2026-11-27)
LEAST_ELEMENTS = 2**18  # below, calling several functions costs more than it saves


@contextmanager
def batch_norms_in_rows(*models: nn.Module) -> Iterator[None]:
    """In the block, batch norms of these models call `batch_norm` of this file wherever they would call torch's."""
    entered: list[tuple[nn.Module, BatchNormMode]] = []

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and inputs and _parts(inputs[0]) > 1:
            entered.append((module, BatchNormMode(batch_norm)))
            entered[-1][1].__enter__()

    def leave(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if entered and entered[-1][0] is module:
            entered.pop()[1].__exit__(None, None, None)

    norms = [norm for model in models for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    with ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_pre_hook(enter))
            hooks.enter_context(norm.register_forward_hook(leave, always_call=True))
        yield


def batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`, in a view with more channels where that is faster: to the same (batch, channels, height, width).

    torch's kernels for channels last add up in one vector of channels per thread. Where these vectors do not fill whole
    lines of the cache, threads wait for each other and two take longer than one; where they do not fill registers, one
    thread works on single numbers. Here pixels side by side in memory are channels of their own, as many as fill what
    is to be filled: (positions / parts, parts * channels). The statistics of the parts make those of a channel.
    """
    parts = _parts(inputs) if training else 1
    if parts == 1:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)
    return _Norm.apply(inputs, weight, bias, running_mean, running_var, momentum, eps, parts)


def _parts(inputs: Tensor) -> int:
    """How many neighbouring pixels to take together; 1 where torch's own is as fast."""
    is_meant = (
        not torch.compiler.is_compiling()
        and not is_synchronized()
        and inputs.device.type == "cpu"
        and inputs.dim() == 4
        and inputs.shape[1] < MOST_CHANNELS
        and inputs.numel() >= LEAST_ELEMENTS
        and inputs.is_contiguous(memory_format=torch.channels_last)
    )
    if not is_meant:
        return 1
    unit = VECTOR if torch.get_num_threads() == 1 else CACHE_LINE
    parts = unit // math.gcd(unit, inputs.shape[1])
    return parts if (inputs.numel() // inputs.shape[1]) % parts == 0 else 1


class _Norm(torch.autograd.Function):
    """Normalise by the statistics of the batch, in rows of several pixels.

    The gradient is that of fixed statistics, less what passes through these: with n the normalised, g the gradient
    times the scale and means over a channel, (g - mean(g) - n * mean(g * n)) / sigma.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, momentum: float, eps: float, parts: int,
    ) -> Tensor:  # fmt: skip
        """(batch, channels, height, width) to the same shape; moves the running statistics, where there are any."""
        rows = _rows(inputs, parts)
        mean, variance = _statistics(rows, parts)
        if running_mean is not None and running_var is not None:
            count = len(rows) * parts
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
        shift = torch.zeros_like(mean) if bias is None else bias.to(mean.dtype)
        ctx.save_for_backward(inputs, scale, mean, variance)
        ctx.eps, ctx.parts = eps, parts
        normed, ctx.node = _fixed(rows, scale, shift, mean, variance, eps)
        # only the shape changes; of a view autograd would refuse to let activations change it in place
        return normed.resize_(inputs.shape, memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of inputs, weight and bias."""
        inputs, scale, mean, variance = ctx.saved_tensors
        rows = _rows(inputs, ctx.parts)
        edge, leaves = ctx.node or _fixed(rows, scale, torch.zeros_like(scale), mean, variance, ctx.eps)[1]
        ctx.node = None  # it holds the inputs for longer than autograd does; a second backward makes it anew
        of_rows, *of_affine = torch.autograd.grad(edge, leaves, _rows(gradient, ctx.parts))
        of_scale, of_shift = torch.stack(of_affine).view(2, ctx.parts, -1).sum(1)
        per_position = scale * (variance + ctx.eps).rsqrt() / (len(rows) * ctx.parts)
        passed_on, _ = _fixed(rows, of_scale * per_position, of_shift * per_position, mean, variance, ctx.eps)
        of_rows -= passed_on
        batch, channels, height, width = inputs.shape
        of_inputs = of_rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_weight, of_bias = of_scale if needs_weight else None, of_shift if needs_bias else None
        return of_inputs, of_weight, of_bias, None, None, None, None, None


def _rows(image: Tensor, parts: int) -> Tensor:
    """(batch, channels, height, width) to (positions / parts, parts * channels)."""
    return image.permute(0, 2, 3, 1).reshape(-1, parts * image.shape[1])


def _statistics(rows: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, over the rows and its parts."""
    count, size = rows.shape
    exact = rows.new_zeros((2, size), dtype=torch.promote_types(rows.dtype, torch.float32))
    F.batch_norm(rows, exact[0], exact[1], None, None, True, 1.0)  # the fastest way to both, though it does more
    means, variances = exact.view(2, parts, -1)
    spread, mean = torch.var_mean(means, 0, correction=0)
    return mean, variances.mean(0) * ((count - 1) / count) + spread


def _fixed(
    rows: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, tuple[GradientEdge, list[Tensor]]]:
    """The rows normalised by given statistics; with torch's own node for their gradient, and the leaves of that."""
    parts = rows.shape[1] // len(mean)
    means, variances, scales, shifts = torch.stack([mean, variance, scale, shift]).repeat(1, parts)
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (rows, scales, shifts)]
        normed = F.batch_norm(leaves[0], means, variances, leaves[1], leaves[2], False, 0.0, eps)
        node = get_gradient_edge(normed), leaves
    return normed.detach_(), node
