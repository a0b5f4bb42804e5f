"""Convolutions and linear layers: they read channels on one axis and make new ones on another."""

from __future__ import annotations

from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tas.graph import Layer, whole_width
from tas.nn.labels import spread
from tas.nn.mixing import CompactAxis, CompactWidth, DenseAxis, DenseWidth
from tas.nn.rules.base import Call, Constant, Kind, layout_of

CONVOLUTIONS = {"conv2d": nn.Conv2d}


def convolution(call: Call) -> Any:
    """Read the input's channels, make new ones, equally many per group; a depthwise convolution passes them on."""
    values = call.arguments
    inputs, weight, groups = values["input"], values["weight"], values["groups"]
    problem = call.owner(weight, CONVOLUTIONS[call.op])
    if not isinstance(inputs, Tensor):
        return call.refuse("convolves a constant")
    if len(call.shape) != 4:
        return other_convolution(call)
    out_channels, per_group = weight.shape[:2]
    is_depthwise = groups > 1 and per_group == 1
    positions = prod(call.shape) // out_channels * prod(weight.shape[2:]) // call.batch
    if problem:
        return _refused_projection(call, problem, positions * out_channels * per_group)
    reads = call.labels.channel_vector(inputs, 1)
    if is_depthwise:
        makes = reads.repeat_interleave(out_channels // groups)
        factors, draft = (makes,), call.draft("depthwise")
    else:
        # every group reads and makes as many channels as the others: they are cut alike
        call.labels.union(reads.view(groups, per_group), reads[:per_group], call.module)
        makes, reads = call.labels.fresh(out_channels // groups).repeat(groups), reads[:per_group]
        factors, draft = (makes, reads), call.draft("convolution")
        call.labels.attach(weight.name, 1, reads)
    draft.products.append((positions, factors))
    _attach_outputs(call, weight, values.get("bias"), makes)
    return spread(makes, 1, call.shape)


def linear(call: Call) -> Any:
    """Read the features on the last dimension, make new ones."""
    inputs, weight = call.arguments["input"], call.arguments["weight"]
    if not isinstance(inputs, Tensor):
        return call.refuse("multiplies a constant")
    positions = prod(call.shape[:-1]) // call.batch
    problem = call.owner(weight, nn.Linear)
    if problem:
        return _refused_projection(call, problem, positions * prod(weight.shape))
    reads = call.labels.channel_vector(inputs, inputs.dim() - 1)
    makes = call.labels.fresh(weight.shape[0])
    call.draft("linear").products.append((positions, (makes, reads)))
    call.labels.attach(weight.name, 1, reads)
    _attach_outputs(call, weight, call.arguments.get("bias"), makes)
    return spread(makes, len(call.shape) - 1, call.shape)


def product_of_activations(call: Call) -> Any:
    """Matrix products inside attention: counted, not opened yet."""
    if call.op == "scaled_dot_product_attention":
        query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
        cost = prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    else:
        first = call.arguments[next(iter(call.arguments))]
        cost = prod(call.shape) * first.shape[-1]
    call.draft("attention").products.append((cost // call.batch, ()))
    if call.constants():
        return call.refuse(f"{call.op} multiplies it with a tensor that is not the weight of a layer")
    return call.refuse("is multiplied with other activations (attention), which is not searched yet")


def _attach_outputs(call: Call, weight: Constant, bias: Any, makes: Tensor) -> None:
    assert weight.name is not None
    call.labels.attach(weight.name, 0, makes)
    if isinstance(bias, Constant) and bias.name:
        call.labels.attach(bias.name, 0, makes)


def _refused_projection(call: Call, reason: str, cost: int) -> Any:
    """Count it all the same, and report its output as frozen."""
    call.draft("other").products.append((cost, ()))
    weight = call.arguments["weight"]
    name = weight.name if isinstance(weight, Constant) and weight.name else f"{call.module}.weight"
    held = dict(call.model.named_parameters(remove_duplicate=False)).get(name)
    if held is not None:
        makes = call.labels.fresh(held.shape[0])
        call.labels.attach(name, 0, makes)
        call.labels.freeze(makes, reason, call.module)
    return call.refuse(f"is read by {call.module or 'the model'}: {reason}")


def other_convolution(call: Call) -> Any:
    """Convolutions without a rule: counted, not opened."""
    inputs, weight = call.arguments["input"], call.arguments["weight"]
    is_transposed = call.op.startswith("conv_transpose")  # every input position, not every output one, meets the kernel
    positions = prod(inputs.shape) // weight.shape[0] if is_transposed else prod(call.shape) // weight.shape[0]
    return _refused_projection(call, f"{call.op} is not supported yet", positions * prod(weight.shape) // call.batch)


def resize_convolution(module: nn.Module) -> None:
    """Set the channel numbers from the weight."""
    assert isinstance(module, nn.Conv2d)
    out_channels, per_group = module.weight.shape[:2]
    if module.groups == module.in_channels > 1:  # depthwise, before the cut
        module.groups = out_channels // (module.out_channels // module.groups)
    module.out_channels, module.in_channels = out_channels, per_group * module.groups


def resize_linear(module: nn.Module) -> None:
    """Set the feature numbers from the weight."""
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


class CompactProjection(nn.Module):
    """A convolution or linear layer that computes only the drawn channels.

    Where no batch norm follows, the mixture of the fragments is folded into the weight: both are linear.
    """

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, CompactWidth]):
        super().__init__()
        self.module = module
        self._makes = CompactAxis(layout_of(layer, "weight", 0), widths)
        self._reads = CompactAxis(layout_of(layer, "weight", 1), widths)
        self._mixed = _mixed_width(layer, widths)
        self._multiplier = module.out_channels // module.groups if isinstance(module, nn.Conv2d) else 1
        self._is_depthwise = layer.kind == "depthwise"

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, active inputs, …) to (batch, active outputs, …); features last for linear layers."""
        tensors = {name: self._makes.take(value, 0) for name, value in _stored(self.module).items()}
        tensors["weight"] = self._reads.take(tensors["weight"], 1)
        if self._mixed is not None and self._mixed.weights is not None:
            return _mixed_call(self.module, tensors, inputs, self._mixed)
        if not self._is_depthwise:
            return functional_call(self.module, tensors, (inputs,))
        assert isinstance(self.module, nn.Conv2d)
        full = self.module.groups
        self.module.groups = tensors["weight"].shape[0] // self._multiplier
        try:
            return functional_call(self.module, tensors, (inputs,))
        finally:
            self.module.groups = full


class DenseProjection(nn.Module):
    """A convolution or linear layer of full shape whose inactive inputs count as zero.

    Its own inactive outputs may hold anything: the mixture switches them off, or whoever reads them does.
    """

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__()
        self.module = module
        self._reads = DenseAxis(layout_of(layer, "weight", 1), widths)
        self._mixed = _mixed_width(layer, widths)

    def forward(self, inputs: Tensor) -> Tensor:
        """Full shapes in and out."""
        tensors = _stored(self.module)
        tensors["weight"] = self._reads.mask(tensors["weight"], 1)
        if self._mixed is not None:
            return _mixed_call(self.module, tensors, inputs, self._mixed)
        return functional_call(self.module, tensors, (inputs,))


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """Weight and bias; what else a subclass holds stays as it is."""
    return {name: value for name, value in module.named_parameters(recurse=False) if name in ("weight", "bias")}


def _mixed_width(layer: Layer, widths: dict[str, Any]) -> Any:
    whole = whole_width(layout_of(layer, "weight", 0))
    return widths[whole[0]] if layer.mixed_by == layer.name and whole is not None else None


def _mixed_call(
    module: nn.Module, tensors: dict[str, Tensor], inputs: Tensor, width: CompactWidth | DenseWidth
) -> Tensor:
    """Mix the fragments in the weight, or behind a linear layer in its outputs where those are fewer."""
    weight = tensors["weight"]
    matrix, _ = width.mixture(None, None, weight)
    copies = weight.shape[0] // len(matrix)
    if copies == 1 and isinstance(module, nn.Linear) and inputs.numel() < weight.shape[1] ** 2:
        return F.linear(functional_call(module, tensors, (inputs,)), matrix)
    folded = {"weight": (matrix @ weight.reshape(copies, len(matrix), -1)).view(weight.shape)}
    if "bias" in tensors:
        folded["bias"] = (tensors["bias"].view(copies, -1) @ matrix.T).flatten()
    return functional_call(module, folded, (inputs,))


LABELS = {
    "conv2d": convolution,
    **dict.fromkeys(
        ("conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), other_convolution
    ),
    "linear": linear,
    "matmul": product_of_activations,
    "bmm": product_of_activations,
    "mm": product_of_activations,
    "scaled_dot_product_attention": product_of_activations,
}
KINDS = {
    "convolution": Kind(resize_convolution, CompactProjection, DenseProjection),
    "depthwise": Kind(resize_convolution, CompactProjection, DenseProjection),
    "linear": Kind(resize_linear, CompactProjection, DenseProjection),
}
