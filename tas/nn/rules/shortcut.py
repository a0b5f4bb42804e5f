"""Identity shortcuts of free residual streams: a block adds its input to an output of another width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.nn.labels import Passage, spread, varying_dims
from tas.nn.mixing import Size, as_tensor
from tas.nn.rules.base import Call


class Marker(nn.Module):
    """Stands in the place of an identity while a model is traced, so that the captured graph has a node there.

    Attributes:
        is_open: whether channels get new labels here; otherwise they pass.
    """

    def __init__(self):
        super().__init__()
        self.is_open = False

    def forward(self, inputs: Tensor) -> Tensor:
        """A copy of what comes in."""
        return inputs.clone()


def marked(call: Call) -> Any:
    """Read the input's channels, make new ones: whatever is added behind decides how many."""
    (inputs,) = call.label_tensors()
    marker = call.model.get_submodule(call.module)
    if not marker.is_open or inputs.dim() != 4 or varying_dims(inputs) != [1]:
        return inputs
    reads = call.labels.channel_vector(inputs, 1)
    makes = call.labels.fresh(len(reads))
    positions = inputs.shape[0] * inputs.shape[2] * inputs.shape[3] // call.batch
    call.labels.passages.append(Passage(call.module, reads, makes, positions))
    return spread(makes, 1, call.shape)


def projection(matrix: Tensor) -> nn.Sequential:
    """A 1x1 convolution with batch norm that starts as a matrix over channels.

    Args:
        matrix: (channels out, channels in), floating point.
    """
    made, read = matrix.shape
    options: dict[str, Any] = {"device": matrix.device, "dtype": matrix.dtype}
    convolution, norm = nn.Conv2d(read, made, 1, bias=False, **options), nn.BatchNorm2d(made, **options)
    with torch.no_grad():
        convolution.weight.copy_(matrix[:, :, None, None])
    pass_unchanged(norm)
    return nn.Sequential(convolution, norm)


@torch.no_grad()
def pass_unchanged(norm: nn.BatchNorm2d) -> None:
    """Let scale and shift undo the statistics that a norm holds, in place."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean)


def untrained_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The norms of projections that are as `projection` made them."""
    pairs = [list(module) for module in model.modules() if type(module) is nn.Sequential and len(module) == 2]
    return [
        norm
        for convolution, norm in pairs
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _is_untrained(norm)
    ]


def _is_untrained(norm: nn.BatchNorm2d) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or not norm.affine or bool((mean != 0).any() | (variance != 1).any()):
        return False
    # the scale that undoes fresh statistics: no other norm starts with it
    return torch.equal(norm.weight, (variance + norm.eps).sqrt()) and not bool(norm.bias.any())


class MaskedShortcut(nn.Module):
    """The identity over the first channels; the others are zero."""

    def __init__(self, channels: int):
        super().__init__()
        self._channels = channels

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width), same shape out."""
        is_kept = torch.arange(inputs.shape[1], device=inputs.device) < self._channels
        return inputs * is_kept[:, None, None].to(inputs.dtype)


class OpenShortcut(nn.Module):
    """What both executions share: the narrower end is added to the first channels of the wider.

    Attributes:
        original: what stood here; None where nothing did.
    """

    def __init__(self, original: nn.Module | None, reads: Size, makes: Size):
        super().__init__()
        self.original = original
        self._reads, self._makes = reads, makes


class CompactShortcut(OpenShortcut):
    """The active channels that come in, cut or filled with zeros to those that go out."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, active channels in, height, width) to (batch, active channels out, height, width)."""
        surplus = int(self._makes.active) - inputs.shape[1]
        if surplus <= 0:
            return inputs.narrow(1, 0, int(self._makes.active)) if surplus else inputs
        return F.pad(inputs, (0, 0, 0, 0, 0, surplus))


class DenseShortcut(OpenShortcut):
    """Full shape; channels that are not active at both ends are zero."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width), same shape out."""
        read, made = (as_tensor(size, inputs.device) for size in (self._reads, self._makes))
        is_kept = torch.arange(inputs.shape[1], device=inputs.device) < torch.minimum(read, made)
        return torch.where(is_kept[:, None, None], inputs, 0.0)
