"""Norms whose statistics run over channels: layer, RMS and group norm. A cut one uses the channels that stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer, positions_of
from tas.nn.labels import varying_dims
from tas.nn.mixing import DenseAxis, DenseWidth
from tas.nn.rules.base import Call, Constant, Kind, layout_of
from tas.nn.rules.opened import CompactLayer, Opened, call_with


def layer_norm(call: Call) -> Any:
    """Over the last dimension: cut with its channels. Where it only runs inside a head, pass the heads on."""
    inputs, weight = call.arguments["input"], call.arguments["weight"]
    if not isinstance(inputs, Tensor):
        return call.refuse("is normalised together with a constant")
    along = varying_dims(inputs)
    over = range(inputs.dim() - len(call.arguments["normalized_shape"]), inputs.dim())
    if not set(over) & set(along):
        return inputs
    if set(along) - set(over):
        call.labels.merge_along(inputs, set(over) & set(along), call.module)
        return inputs
    problem = _problem(call, weight) or ("is normalised over several dimensions" if len(over) > 1 else None)
    if problem:
        return call.refuse(problem)
    return _cut_with(call, call.labels.channel_vector(inputs, inputs.dim() - 1), call.op)


def group_norm(call: Call) -> Any:
    """Every group keeps equally many channels."""
    inputs, weight, groups = call.arguments["input"], call.arguments["weight"], call.arguments["num_groups"]
    problem = _problem(call, weight)
    if problem or not isinstance(inputs, Tensor):
        return call.refuse(problem or "is normalised together with a constant")
    channels = call.labels.channel_vector(inputs, 1)
    if groups < len(channels):
        call.labels.union(channels.view(groups, -1), channels.view(groups, -1)[:1], call.module)
    return _cut_with(call, channels, "group_norm")


def _problem(call: Call, weight: Any) -> str | None:
    owner = call.model.get_submodule(call.module)
    if weight is None:
        return f"is normalised by {call.module or 'the model'}, which has no weights that could follow a cut"
    is_norm = isinstance(owner, nn.GroupNorm) or isinstance(getattr(owner, "normalized_shape", None), tuple)
    if not is_norm or not isinstance(weight, Constant) or weight.name != f"{call.module}.weight":
        return f"is normalised by {type(owner).__name__}, which has no rule"
    return None


def _cut_with(call: Call, channels: Tensor, kind: str) -> Tensor:
    for name in ("weight", "bias"):
        tensor = call.arguments.get(name)
        if isinstance(tensor, Constant) and tensor.name:
            call.labels.attach(tensor.name, 0, channels)
    draft, entry = call.draft(kind), call.entry()
    dims = [] if entry is None else varying_dims(entry)
    draft.channel_dim = dims[0] if len(dims) == 1 else 1
    return call.arguments["input"]


def channel_norm_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Channels, and groups where each has one channel."""
    weight = tensors.get("weight", module.weight)
    assert isinstance(weight, Tensor)
    if not isinstance(module, nn.GroupNorm):
        return {"normalized_shape": (len(weight),)}
    has_own = module.num_groups == module.num_channels > 1
    return {"num_channels": len(weight), "num_groups": len(weight) if has_own else module.num_groups}


class MaskedChannelNorm(Opened):
    """The norm of some channels in a tensor of all; the others are zero."""

    def __init__(self, module: nn.Module, layer: Layer, sizes: Mapping[str, int]):
        super().__init__(module)
        layout = layout_of(layer, "weight", 0)
        assert layout is not None
        self._kept, self._dim = torch.as_tensor(positions_of(layout, sizes)), layer.channel_dim

    def forward(self, inputs: Tensor) -> Tensor:
        """Full shape in and out."""
        own = self.module.named_parameters(recurse=False)
        tensors = {name: value[self._kept] for name, value in own if name in ("weight", "bias")}
        numbers = channel_norm_numbers(self.module, tensors)
        outputs = call_with(self.module, tensors, numbers, inputs.index_select(self._dim, self._kept))
        return torch.zeros_like(inputs).index_copy(self._dim, self._kept, outputs)


class DenseChannelNorm(Opened):
    """The norm of the active channels, computed in full shape; inactive channels may hold anything finite."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module)
        self._axis = DenseAxis(layout_of(layer, "weight", 0), widths)
        self._dim, self._is_centred = layer.channel_dim, layer.kind != "rms_norm"

    def forward(self, inputs: Tensor) -> Tensor:
        """Full shape in and out."""
        module: Any = self.module
        values = inputs.movedim(self._dim, 1)
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        grouped = values.unflatten(1, (groups, -1))
        on = self._axis.mask(torch.ones_like(module.weight), 0)
        on = on.view(1, groups, -1, *[1] * (values.dim() - 2)).to(values.dtype)
        over = list(range(2, grouped.dim())) if isinstance(module, nn.GroupNorm) else [2]
        count = on.expand(1, *grouped.shape[1:]).sum(over, keepdim=True).clamp_min(1)
        if self._is_centred:
            grouped = grouped - (grouped * on).sum(over, keepdim=True) / count
        eps = module.eps if module.eps is not None else torch.finfo(values.dtype).eps
        power = (grouped.square() * on).sum(over, keepdim=True) / count
        normal = (grouped * (power + eps).rsqrt()).flatten(1, 2)
        shape = [-1] + [1] * (values.dim() - 2)
        normal = normal * module.weight.view(shape)
        bias = getattr(module, "bias", None)
        normal = (normal if bias is None else normal + bias.view(shape)).movedim(1, self._dim)
        for child in module.children():  # a subclass may hold an activation, as timm's norms do
            normal = child(normal)
        return normal


def _compact(module: nn.Module, layer: Layer, widths: dict[str, Any]) -> nn.Module:
    return CompactLayer(module, layer, widths, channel_norm_numbers)


_CHANNEL_NORM = Kind(channel_norm_numbers, _compact, DenseChannelNorm, masked=MaskedChannelNorm)
LABELS = {"layer_norm": layer_norm, "rms_norm": layer_norm, "group_norm": group_norm}
KINDS = {"layer_norm": _CHANNEL_NORM, "rms_norm": _CHANNEL_NORM, "group_norm": _CHANNEL_NORM}
