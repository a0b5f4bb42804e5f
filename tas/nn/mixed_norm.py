"""Batch norm and the mixture of network fragments as one operation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from tas.nn.few_channels import batch_norm


class MixedNorm(torch.autograd.Function):
    """Normalise by the statistics of the batch, then mix channels.

    Equal to `F.batch_norm` without affine followed by a convolution of size one. Only the normalised input is kept for
    the backward pass, where the input of the norm is not needed: with n the normalised, g the gradient that comes back
    through the convolution and means over batch and pixels, the gradient of the input is
    (g - mean(g) - n · mean(g · n)) / σ, and both means are in the gradients of weights and bias.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weights: Tensor, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
        momentum: float, eps: float,
    ) -> Tensor:  # fmt: skip
        """(batch, channels, height, width) to the same shape; moves the running statistics, where there are any.

        Args:
            ctx: of autograd.
            inputs: of the norm.
            weights: (channels, channels / groups, 1, 1).
            bias: (channels,), or None.
            mean: running, (channels,); changed in place.
            variance: running, (channels,); changed in place.
            momentum: share of the batch in them.
            eps: added to the variance.
        """
        channels, count = inputs.shape[1], inputs.numel() // inputs.shape[1]
        exact = inputs.new_zeros((2, channels), dtype=torch.promote_types(inputs.dtype, torch.float32))
        normal = batch_norm(inputs, exact[0], exact[1], None, None, True, 1.0, eps)
        if mean is not None and variance is not None:
            mean.lerp_(exact[0].to(mean.dtype), momentum)
            variance.lerp_(exact[1].to(variance.dtype), momentum)
        ctx.groups = channels // weights.shape[1]
        deviation_inverse = (exact[1] * ((count - 1) / count) + eps).rsqrt()
        ctx.save_for_backward(normal, weights, deviation_inverse)
        return F.conv2d(normal, weights, bias, groups=ctx.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of inputs, weights and bias."""
        normal, weights, deviation_inverse = ctx.saved_tensors
        needs_inputs, _, needs_bias, *_ = ctx.needs_input_grad
        of_weights = conv2d_weight(normal, weights.shape, gradient, groups=ctx.groups)
        of_bias, of_inputs = gradient.sum((0, 2, 3)), None
        if needs_inputs:
            size, count = weights.shape[1], normal.numel() // normal.shape[1]
            per_group = weights.view(ctx.groups, size, size)
            scale = deviation_inverse.to(weights.dtype)
            back = (per_group.mT * scale.view(ctx.groups, size, 1)).reshape(weights.shape)
            offset = scale * torch.einsum("goi,go->gi", per_group, of_bias.view(ctx.groups, size)).flatten() / count
            slope = scale * (per_group * of_weights.view_as(per_group)).sum(1).flatten() / count
            of_inputs = F.conv2d(gradient, back, -offset, groups=ctx.groups).addcmul_(normal, -slope[:, None, None])
        return of_inputs, of_weights, of_bias if needs_bias else None, None, None, None, None
