"""Norms whose statistics run over channels: layer, RMS and group norm, and what a module computes like one by itself.

A cut one uses the channels that stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer, positions_of
from tas.nn.labels import Labels, varying_dims
from tas.nn.mixing import DenseAxis, DenseWidth
from tas.nn.rules.base import Call, Constant, Draft, Kind, layout_of
from tas.nn.rules.opened import CompactLayer, Opened, call_with, no_numbers
from tas.nn.rules.parameter import bind, learned


def layer_norm(call: Call) -> Any:
    """Over the last dimension: cut with its channels. Where it only runs inside a head, pass the heads on."""
    inputs, weight = call.arguments["input"], call.arguments["weight"]
    inputs = learned(call, inputs, -1) if isinstance(inputs, Constant) else inputs
    along = varying_dims(inputs)
    over = range(inputs.dim() - len(call.arguments["normalized_shape"]), inputs.dim())
    if not set(over) & set(along):
        return inputs
    if set(along) - set(over):
        call.labels.merge_along(inputs, set(over) & set(along), call.module)
        return inputs
    problem = _problem(call, weight) or ("is normalised over several dimensions" if len(over) > 1 else None)
    if problem:
        return inputs if len(over) == 1 and _is_own_norm(call, inputs) else call.refuse(problem)
    return _cut_with(call, inputs, call.labels.channel_vector(inputs, inputs.dim() - 1), call.op)


def group_norm(call: Call) -> Any:
    """Every group keeps equally many channels."""
    inputs, weight, groups = call.arguments["input"], call.arguments["weight"], call.arguments["num_groups"]
    if not isinstance(inputs, Tensor):
        return call.refuse("is normalised together with a constant")
    problem, channels = _problem(call, weight), call.labels.channel_vector(inputs, 1)
    if groups < len(channels):
        call.labels.union(channels.view(groups, -1), channels.view(groups, -1)[:1], call.module)
    if problem:
        is_own = groups < len(channels) and _is_own_norm(call, inputs.movedim(1, -1))
        return inputs if is_own else call.refuse(problem)
    return _cut_with(call, inputs, channels, "group_norm")


def _is_own_norm(call: Call, inputs: Tensor) -> bool:
    """Whether a module that is no norm of torch's normalises what it reads, with weights of its own or without.

    Args:
        call: one of torch's norms.
        inputs: channels last.
    """
    weights = [item for name in ("weight", "bias") if isinstance(item := call.arguments.get(name), Constant)]
    return in_own_norm(call, inputs) and not any(bind(call, weight, inputs) for weight in weights)


def in_own_norm(call: Call, labels: Tensor) -> bool:
    """Whether the innermost module averages these labels by itself over the channels that it reads; if so, note it.

    An RMS norm of Hugging Face, ConvNeXt's `LayerNorm` and its response norm, spatial attention. Its own forward is
    called for the channels that stay, wherever it is cut; the self-check has the last word.
    """
    entry = call.entry()
    dims = [] if entry is None else varying_dims(entry)
    if not call.module or entry is None or len(dims) != 1:
        return False
    channels = call.labels.channel_vector(entry, dims[0])
    draft = call.draft("own_norm")
    if draft.kind != "own_norm" or [labels.shape[dim] for dim in varying_dims(labels)] != [len(channels)]:
        return False
    if draft.channels is not None and len(draft.channels) != len(channels):
        return False
    if draft.channels is not None:  # called twice: what it reads is cut alike
        call.labels.union(draft.channels, channels, call.module)
    draft.channels, draft.channel_dim = channels, dims[0]
    draft.averaged.append((call.op, call.labels.channel_vector(labels, varying_dims(labels)[0])))
    return True


def refuse_what_is_no_norm(labels: Labels, drafts: Mapping[str, Draft], read: Sequence[Tensor]) -> None:
    """Freeze what a module averages that is not what it reads, or what layers inside it read or make as well.

    And what no layer reads: these may be classes of which it gives the best.

    Args:
        labels: of the whole trace.
        drafts: by path.
        read: the channels that layers read.
    """
    if not any(draft.averaged for draft in drafts.values()):
        return
    roots = torch.as_tensor(labels.roots())
    needed = torch.cat([roots[:0], *(roots[torch.as_tensor(axis)] for axis in read)])
    for path, draft in drafts.items():
        if draft.channels is None:
            continue
        mine = roots[draft.channels]
        inside = [axis for (name, _), axis in labels.axes.items() if name.rpartition(".")[0].startswith(f"{path}.")]
        has_layers = any(bool(torch.isin(roots[torch.as_tensor(axis)], mine).any()) for axis in inside)
        is_needed = bool(torch.isin(mine, needed).all())
        if has_layers or not is_needed or not all(torch.equal(roots[vector], mine) for _, vector in draft.averaged):
            for op, vector in draft.averaged:
                labels.freeze(vector, f"is reduced over channels by {op}", path)
            draft.kind, draft.channels = "other", None


def _problem(call: Call, weight: Any) -> str | None:
    owner = call.model.get_submodule(call.module)
    if weight is None:
        return (
            f"is normalised by {call.module or 'the model'}, which has no weights that could follow a cut; a norm that "
            f"is a module of its own, such as nn.LayerNorm(…, elementwise_affine=False), is cut"
        )
    is_norm = isinstance(owner, nn.GroupNorm) or isinstance(getattr(owner, "normalized_shape", None), tuple)
    if not is_norm or not isinstance(weight, Constant) or weight.name != f"{call.module}.weight":
        return f"is normalised by {type(owner).__name__}, which has no rule"
    return None


def _cut_with(call: Call, inputs: Tensor, channels: Tensor, kind: str) -> Tensor:
    for name in ("weight", "bias"):
        tensor = call.arguments.get(name)
        if isinstance(tensor, Constant) and tensor.name:
            call.labels.attach(tensor.name, 0, channels)
    draft, entry = call.draft(kind), call.entry()
    dims = varying_dims(inputs if entry is None else entry)
    draft.channel_dim = dims[0] if len(dims) == 1 else 1
    return inputs


def channel_norm_numbers(module: nn.Module, tensors: Mapping[str, Tensor], channels: int = 0) -> dict[str, Any]:
    """Channels, and groups where each has one channel; nothing of modules that are no such norms."""
    count = channels or len(tensors.get("weight", module.weight))  # type: ignore[arg-type]
    if isinstance(module, nn.GroupNorm):
        has_own = module.num_groups == module.num_channels > 1
        return {"num_channels": count, "num_groups": count if has_own else module.num_groups}
    return {"normalized_shape": (count,)} if hasattr(module, "normalized_shape") else {}


class _SomeChannels(Opened):
    """A norm called for some of the channels in a tensor of all; the others become zero."""

    def __init__(self, module: nn.Module, layer: Layer):
        super().__init__(module)
        self._axes = [
            (item.short, dim)
            for item in layer.parameters
            for dim, layout in enumerate(item.layouts)
            if layout is not None
        ]
        layout = layer.channels or layout_of(layer, "weight", 0)
        assert layout is not None
        self._layout, self._dim = layout, layer.channel_dim

    def _kept(self, inputs: Tensor) -> Tensor:
        """Positions of the channels."""
        raise AssertionError("abstract")

    def forward(self, inputs: Tensor, *others: Any, **options: Any) -> Tensor:
        """Full shape in and out; averages of channels have no channels."""
        kept = self._kept(inputs)
        tensors = {name: getattr(self.module, name).index_select(dim, kept) for name, dim in self._axes}
        numbers = channel_norm_numbers(self.module, tensors, len(kept))
        outputs = call_with(self.module, tensors, numbers, inputs.index_select(self._dim, kept), *others, **options)
        # of one channel the average looks alike
        sizes = outputs.shape if len(kept) > 1 else self.module(inputs, *others, **options).shape
        if len(sizes) <= self._dim or sizes[self._dim] not in (len(kept), inputs.shape[self._dim]):
            return outputs
        whole = torch.zeros_like(inputs, dtype=outputs.dtype)  # under autocast a norm may answer in full precision
        return whole.index_copy(self._dim, kept, outputs)


class MaskedChannelNorm(_SomeChannels):
    """The norm of the channels that an architecture keeps."""

    def __init__(self, module: nn.Module, layer: Layer, sizes: Mapping[str, int]):
        super().__init__(module, layer)
        self._places = torch.as_tensor(positions_of(self._layout, sizes))

    def _kept(self, inputs: Tensor) -> Tensor:
        return self._places.to(inputs.device)


class DenseOwnNorm(_SomeChannels):
    """A norm of a module's own for the active channels. How many they are is looked up: this alone breaks a graph."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module, layer)
        self._axis = DenseAxis(self._layout, widths)

    def _kept(self, inputs: Tensor) -> Tensor:
        return self._axis.mask(inputs.new_ones(inputs.shape[self._dim]), 0).nonzero().flatten()


class DenseChannelNorm(Opened):
    """The norm of the active channels, computed in full shape; inactive channels may hold anything finite."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module)
        self._axis = DenseAxis(layout_of(layer, "weight", 0), widths)
        self._dim, self._is_centred = layer.channel_dim, layer.kind != "rms_norm"

    def forward(self, inputs: Tensor, *others: Any, **options: Any) -> Tensor:
        """Full shape in and out; what else a norm is told, such as where its channels stand, is known already."""
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
KINDS = {
    **dict.fromkeys(LABELS, _CHANNEL_NORM),
    "own_norm": Kind(no_numbers, CompactLayer, DenseOwnNorm, masked=MaskedChannelNorm),
}
