"""Convolutions and linear layers: they read channels on one axis and make new ones on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tas.graph import Layer, whole_width
from tas.nn.labels import fixed, spread, varying_dims
from tas.nn.mixing import CompactWidth, DenseAxis, DenseWidth
from tas.nn.paths import joined
from tas.nn.rules.base import Call, Constant, Draft, Kind, LabelRule, layout_of
from tas.nn.rules.opened import ActiveTensors, Opened, call_with
from tas.nn.rules.parameter import bind, learned

CONVOLUTIONS = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d, "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d, "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip


def convolution(call: Call) -> Any:
    """Read the input's channels, make new ones, equally many per group; a depthwise convolution passes them on."""
    values = call.arguments
    inputs, weight, groups = values["input"], values["weight"], values["groups"]
    if not isinstance(weight, Constant) and not call.is_parametrised():
        return call.refuse(f"{call.op} convolves with a kernel that depends on the input")
    if not isinstance(inputs, Tensor):
        inputs = fixed(inputs.shape)
    is_transposed = call.op.startswith("conv_transpose")
    kernel = prod(weight.shape[2:])
    positions = prod(inputs.shape if is_transposed else call.shape) * kernel // call.batch
    path, problem = call.owner(weight, CONVOLUTIONS[call.op])
    is_own = problem is not None and not is_transposed and _computes_its_weight(call, weight, CONVOLUTIONS[call.op])
    problem = (None if is_own else problem) or _odd_call(call, inputs, weight, is_transposed)
    if not problem and 1 not in (varying_dims(inputs) or [1]):
        if _is_pointwise(call, weight):
            return _passing_by(call, call.draft("convolution", path), inputs, positions * weight.shape[1], mixed=1)
        problem = f"{call.op} runs along channels, not over them"
    reads = call.labels.channel_vector(inputs, 1)
    if problem and not is_transposed and groups == call.shape[1] == len(reads) > 1 and _passes(call, weight, reads):
        call.count(call.draft("other"), positions // groups, (reads,))
        return spread(reads, 1, call.shape)
    if problem:
        return _refused(call, problem, positions * weight.shape[1])
    out_channels = call.shape[1]
    positions //= inputs.shape[1] if is_transposed else out_channels
    if groups == len(reads) > 1:
        makes = reads.repeat_interleave(out_channels // groups)
        return _connected(call, call.draft("depthwise", path), positions, (makes,), {"weight": (0, makes)})
    # every group reads and makes as many channels as the others: they are cut alike
    per_group = len(reads) // groups
    call.labels.union(reads.view(groups, per_group), reads[:per_group], call.module)
    makes = call.labels.fresh(out_channels // groups).repeat(groups)
    if is_transposed:
        draft = call.draft("transposed", path)
        return _connected(call, draft, positions, (makes, reads), {"weight": (1, makes)}, {"weight": (0, reads)})
    draft, reads = call.draft("own_convolution" if is_own else "convolution", path), reads[:per_group]
    return _connected(call, draft, positions, (makes, reads), {"weight": (0, makes)}, {"weight": (1, reads)})


def _passes(call: Call, weight: Any, reads: Tensor) -> bool:
    """Whether a kernel that is no layer's is one for every channel, and can be cut with them, as one that blurs."""
    found = [item for item in (weight, call.arguments.get("bias")) if isinstance(item, Constant)]
    is_plain = (
        isinstance(weight, Constant) and not call.is_parametrised() and 1 in varying_dims(call.arguments["input"])
    )
    return is_plain and not any(bind(call, item, spread(reads, 0, item.shape)) for item in found)


def _computes_its_weight(call: Call, weight: Any, kind: type[nn.Module]) -> bool:
    """Whether the module computes the weight from one of that shape that it stores, as standardised convolutions do."""
    owner = call.model.get_submodule(call.module)
    stored = owner._parameters.get("weight") if type(owner) is not kind and isinstance(owner, kind) else None
    is_computed = isinstance(weight, Constant) and weight.name is None and not call.is_parametrised()
    return is_computed and stored is not None and tuple(stored.shape) == weight.shape


def _odd_call(call: Call, inputs: Tensor, weight: Constant, is_transposed: bool) -> str | None:
    if len(call.shape) != len(weight.shape):
        return f"{call.op} without a batch dimension is not supported"
    groups = call.arguments["groups"]
    if is_transposed and groups > 1 and (groups != weight.shape[0] or weight.shape[1] != 1):
        return "grouped transposed convolutions are not supported"
    return None


def _is_pointwise(call: Call, weight: Constant) -> bool:
    """Whether a convolution does at every place what a linear layer does, so that places can be channels."""
    values = call.arguments
    is_plain = values["groups"] == 1 and weight.name is not None and "transpose" not in call.op
    is_plain = is_plain and prod(weight.shape[2:]) == 1 and {*values["stride"]} == {1}
    return is_plain and tuple(call.shape[2:]) == tuple(values["input"].shape[2:])  # not padded


def linear(call: Call) -> Any:
    """Read the features on the last dimension, make new ones."""
    inputs, weight = call.arguments["input"], call.arguments["weight"]
    if not isinstance(weight, Constant) and not call.is_parametrised():
        return call.refuse("linear multiplies with a weight that depends on the input")
    positions = prod(call.shape[:-1])
    if isinstance(inputs, Tensor):  # a table of positions, say, is computed once, whatever the batch
        positions //= call.batch
    path, problem = call.owner(weight, nn.Linear)
    if problem:
        return _refused(call, problem, positions * prod(weight.shape))
    inputs = learned(call, inputs, -1) if isinstance(inputs, Constant) else inputs
    return connect_linear(call, call.draft("linear", path), inputs, positions, "weight")


def connect_linear(call: Call, draft: Draft, inputs: Tensor, positions: int, name: str) -> Tensor:
    """Labels of a linear product with the layer's own parameter `name`; over positions, channels pass by."""
    last, along = inputs.dim() - 1, varying_dims(inputs)
    out_features = call.shape[-1]
    if along and last not in along:
        return _passing_by(call, draft, inputs, positions * inputs.shape[-1] * out_features, mixed=last)
    reads, makes = call.labels.channel_vector(inputs, last), call.labels.fresh(out_features)
    return _connected(call, draft, positions, (makes, reads), {name: (0, makes)}, {name: (1, reads)}, last)


def _passing_by(call: Call, draft: Draft, inputs: Tensor, macs: int, *, mixed: int) -> Tensor:
    """Channels along another dimension than the one that is mixed."""
    along, makes = varying_dims(inputs), call.labels.fresh(call.shape[mixed])
    call.labels.attach(call.arguments["weight"].name, 0, makes)
    call.labels.freeze(makes, "mixes positions, not channels", call.module)
    if len(along) > 1:
        return call.refuse(f"{call.op} runs over positions that hold different channels")
    call.count(draft, macs // inputs.shape[along[0]], (call.labels.channel_vector(inputs, along[0]),))
    return inputs.narrow(mixed, 0, 1).expand(call.shape)


def _connected(
    call: Call, draft: Draft, positions: int, factors: tuple[Tensor, ...], makes: dict[str, tuple[int, Tensor]],
    reads: Mapping[str, tuple[int, Tensor]] | None = None, channel_dim: int = 1,
) -> Tensor:  # fmt: skip
    """Note the cost and the axes of a layer; give the labels of its output."""
    call.count(draft, positions, factors)
    weight, bias = call.arguments["weight"], call.arguments.get("bias")
    axes, ((_, made),) = (*makes.values(), *(reads or {}).values()), makes.values()
    for dim, labels in axes:
        call.labels.attach(weight.name or joined(call.module, "weight"), dim, labels)
    if weight.name is None:  # the module computes it, perhaps with a gain for every channel, or a mask
        _attach_others(call, made, axes)
    start = 0
    for part in (bias.joined or (bias,)) if isinstance(bias, Constant) else ():
        stored, end = part.stored_name(), start + part.shape[0]
        if stored is not None:
            call.labels.attach(stored, 0, made[start:end])
        start = end
    return spread(made, channel_dim, call.shape)


def _attach_others(call: Call, made: Tensor, axes: Sequence[tuple[int, Tensor]]) -> None:
    """What a module stores beside its weight: vectors with a number per channel, and what has the weight's shape."""
    module = call.model.get_submodule(call.module)
    for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        path, shape = joined(call.module, name), tuple(tensor.shape)
        if name in ("weight", "bias"):
            continue
        if shape == call.arguments["weight"].shape:
            for dim, labels in axes:
                call.labels.attach(path, dim, labels)
        elif isinstance(tensor, nn.Parameter) and tensor.numel() == len(made) == max(shape):
            call.labels.attach(path, shape.index(len(made)), made)


def _refused(call: Call, reason: str, cost: int) -> Any:
    """Count it all the same, and report its output as frozen."""
    call.count(call.draft("other"), cost)
    weight, dim = call.arguments["weight"], 1 if call.op.startswith("conv_transpose") else 0
    name = weight.name if isinstance(weight, Constant) else None
    own = call.model.get_submodule(call.module)._parameters.get("weight") if name is None else None
    shape = weight.shape if own is None else own.shape  # what is computed may come from a part of it
    dim = min(dim, len(shape) - 1)
    makes = call.labels.fresh(shape[dim])
    call.labels.attach(name or joined(call.module, "weight"), dim, makes)
    call.labels.freeze(makes, reason, call.module)
    return call.refuse(f"is read by {call.module or 'the model'}: {reason}")


def convolution_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Channel numbers and groups of a cut convolution."""
    assert isinstance(module, _ConvNd)
    weight = tensors.get("weight", module.weight)
    if isinstance(module, _ConvTransposeNd):
        groups = weight.shape[0] if module.groups > 1 else 1
        return {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * groups, "groups": groups}
    groups, out_channels = module.groups, weight.shape[0]
    if groups == module.in_channels > 1:
        groups = out_channels // (module.out_channels // groups)
    return {"in_channels": weight.shape[1] * groups, "out_channels": out_channels, "groups": groups}


def linear_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Feature numbers of a cut linear layer."""
    weight = tensors.get("weight", module.weight)
    assert isinstance(weight, Tensor)
    return {"in_features": weight.shape[1], "out_features": weight.shape[0]}


class OpenProjection(Opened):
    """What both executions share: a layer whose weight depends on the sizes drawn now.

    A forward around it may also read `weight` and `bias` themselves, as torchvision's Swin does.
    """

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module)
        self._made_on = 1 if isinstance(module, _ConvTransposeNd) and module.groups == 1 else 0
        self._mixed = MixedWidth.of(layer, widths, "weight", self._made_on)

    def _active(self) -> dict[str, Tensor]:
        """Weight and bias before mixing."""
        raise AssertionError("abstract")

    def _matrix(self, like: Tensor) -> Tensor | None:
        """What mixes the fragments now; None where one size is fixed, or another layer mixes."""
        return None if self._mixed is None else self._mixed.matrix(like)

    def _folded(self, tensors: dict[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
        assert self._mixed is not None
        dims = {"weight": self._made_on, "bias": 0}
        return {name: fold(value, matrix, self._mixed.repeat, dims[name]) for name, value in tensors.items()}

    def _stored(self) -> dict[str, Tensor]:
        """Weight and bias in full; what else a subclass holds stays as it is."""
        return {n: value for n, value in self.module.named_parameters(recurse=False) if n in ("weight", "bias")}

    def _effective(self, name: str) -> Tensor | None:
        tensors = self._active()
        matrix = self._matrix(tensors["weight"])
        return (tensors if matrix is None else self._folded(tensors, matrix)).get(name)

    @property
    def weight(self) -> Tensor | None:
        """As it acts now."""
        return self._effective("weight")

    @property
    def bias(self) -> Tensor | None:
        """As it acts now."""
        return self._effective("bias")

    def forward(self, inputs: Tensor, *others: Any, **options: Any) -> Tensor:
        """Inputs and outputs as of the module, over the channels of this execution."""
        tensors = self._active()
        numbers = self._numbers(tensors)
        weight = tensors["weight"]
        matrix = self._matrix(weight)
        if matrix is None:
            return call_with(self.module, tensors, numbers, inputs, *others, **options)
        is_linear = isinstance(self.module, nn.Linear) and weight.shape[0] == len(matrix)
        if is_linear and inputs.numel() < weight.shape[1] ** 2:  # fewer outputs than weights to mix
            outputs = call_with(self.module, tensors, numbers, inputs, *others, **options)
            return F.linear(outputs, matrix) if matrix.dim() > 1 else outputs * matrix
        return call_with(self.module, self._folded(tensors, matrix), numbers, inputs, *others, **options)

    def _numbers(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {}


class CompactProjection(OpenProjection):
    """A convolution or linear layer that computes only the drawn channels.

    Where no batch norm follows, the mixture of the fragments is folded into the weight: both are linear.
    """

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, CompactWidth]):
        super().__init__(module, layer, widths)
        self._tensors = ActiveTensors(layer, widths)

    def _active(self) -> dict[str, Tensor]:
        return self._stored() | self._tensors.of(self.module)

    def _numbers(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        is_convolution = isinstance(self.module, _ConvNd)
        return (convolution_numbers if is_convolution else linear_numbers)(self.module, tensors)


class DenseProjection(OpenProjection):
    """A convolution or linear layer of full shape whose inactive inputs count as zero.

    Its own inactive outputs may hold anything: the mixture switches them off, or whoever reads them does.
    """

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module, layer, widths)
        self._reads = DenseAxis(layout_of(layer, "weight", 1 - self._made_on), widths)

    def _active(self) -> dict[str, Tensor]:
        tensors = self._stored()
        tensors["weight"] = self._reads.mask(tensors["weight"], 1 - self._made_on)
        return tensors


@dataclass(frozen=True)
class MixedWidth:
    """A width whose fragments a layer mixes in its own weight, and how many positions a channel has there."""

    width: CompactWidth | DenseWidth
    repeat: int

    @classmethod
    def of(cls, layer: Layer, widths: Mapping[str, Any], parameter: str, dim: int) -> MixedWidth | None:
        """None for a layer that mixes nothing, or leaves it to a norm."""
        whole = whole_width(layout_of(layer, parameter, dim))
        return cls(widths[whole.width], whole.repeat) if layer.mixed_by == layer.name and whole is not None else None

    def matrix(self, like: Tensor) -> Tensor | None:
        """What mixes the fragments now; None where one size is fixed."""
        return None if getattr(self.width, "weights", None) is None else self.width.mixture(None, None, like)[0]


def fold(values: Tensor, matrix: Tensor, repeat: int, dim: int = 0) -> Tensor:
    """Mix the fragments of a width in what makes its channels.

    Args:
        values: weight or bias; along `dim` stand copies of the width, every channel in `repeat` positions in a row.
        matrix: (channels, channels), from `mixture`; its diagonal alone where fragments are not interpolated.
        repeat: positions of a channel.
        dim: axis of the channels.

    Shape:
        That of `values`.
    """
    moved = values.movedim(dim, 0)
    copies = moved.shape[0] // (len(matrix) * repeat)
    by_channel = moved.reshape(copies, len(matrix), -1)
    mixed = matrix @ by_channel if matrix.dim() > 1 else matrix[:, None] * by_channel
    return mixed.view(moved.shape).movedim(0, dim)


_WEIGHT_0, _WEIGHT_1 = {"weight": 0}, {"weight": 1}
LABELS: dict[str, LabelRule] = dict.fromkeys(CONVOLUTIONS, convolution)  # `attention` sees linear layers first
KINDS = {
    "convolution": Kind(convolution_numbers, CompactProjection, DenseProjection, makes=_WEIGHT_0, reads=_WEIGHT_1),
    "transposed": Kind(convolution_numbers, CompactProjection, DenseProjection, makes=_WEIGHT_1, reads=_WEIGHT_0),
    "depthwise": Kind(convolution_numbers, CompactProjection, DenseProjection),
    "linear": Kind(linear_numbers, CompactProjection, DenseProjection, makes=_WEIGHT_0, reads=_WEIGHT_1),
}
