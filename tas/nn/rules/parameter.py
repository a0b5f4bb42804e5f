"""Parameters that forward itself adds or multiplies: layer scale, position embeddings, class tokens, PReLU."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer, positions_of
from tas.nn.labels import fixed, spread, varying_dims
from tas.nn.mixing import DenseAxis
from tas.nn.rules.base import Call, Constant, Kind
from tas.nn.rules.opened import ActiveTensors, CompactLayer, DenseLayer, Opened, call_with, no_numbers


def bind(call: Call, constant: Constant, labels: Tensor) -> str | None:
    """Cut a parameter that is combined, position by position, with labelled values; say why not where that fails.

    Args:
        call: the operation that combines them.
        constant: of a shape that broadcasts to that of the labels.
        labels: what stands at every position of the other operand.
    """
    along = varying_dims(labels)
    sizes = [1] * (labels.dim() - len(constant.shape)) + list(constant.shape)
    if all(sizes[dim] == 1 for dim in along):
        return None
    for name, elements in constant.elements():
        problem = _bind_one(call, name, elements.view(sizes), labels, along)
        if problem and not name and not _differs(constant.value(), [dim - labels.dim() for dim in along]):
            continue  # such as zeros that a state begins with
        if problem:
            return problem
    return None


def _differs(value: Tensor, dims: Sequence[int]) -> bool:
    first = value
    for dim in dims:
        first = first.narrow(dim, 0, 1) if -dim <= value.dim() else first
    return not torch.equal(first.expand_as(value), value)


def learned(call: Call, constant: Constant, dim: int) -> Tensor:
    """Labels of what is computed from parameters alone, as the queries that a decoder begins with.

    Args:
        call: the operation that reads it.
        constant: of tables that are not learned, no channels can be chosen.
        dim: of the channels.
    """
    names = [name for name, _ in constant.elements()]
    if not names or not all(name and isinstance(call.tensor(name), nn.Parameter) for name in names):
        return fixed(constant.shape)
    dim %= len(constant.shape)
    labels = spread(call.labels.fresh(constant.shape[dim]), dim, constant.shape)
    problem = bind(call, constant, labels)
    if problem:
        call.labels.freeze(labels, problem, call.module)
    return labels


def read_by_parameter(call: Call, constant: Constant, dim: int, reads: Tensor) -> bool:
    """Cut a parameter with the channels that a product with it sums over; whether that can be done.

    Args:
        call: the product; what it makes is not cut.
        constant: made of one parameter that its module keeps, as CLIP's `x @ self.proj`.
        dim: of the constant that is summed over.
        reads: labels of the channels.
    """
    names = [name for name, _ in constant.elements()]
    if len(names) != 1 or not names[0] or not isinstance(call.tensor(names[0]), nn.Parameter):
        return False
    path = names[0].rpartition(".")[0]
    draft = call.drafts.get(path)
    if any(isinstance(call.model.get_submodule(path), types) for types in _OWNERS.values()):
        return False
    if (draft is not None and draft.kind not in ("other", "product")) or bind(
        call, constant, spread(reads, dim, constant.shape)
    ):
        return False
    call.draft("product", path)
    return True


def _bind_one(
    call: Call, name: str, elements: Tensor, labels: Tensor, along: list[int], *, is_last: bool = False
) -> str | None:
    if not name:
        meets = set(varying_dims(elements)) & set(along)
        if not meets or meets == set(along):
            return "is combined with a tensor made in forward, which differs between channels" if meets else None
        call.labels.merge_along(labels, meets, call.module)  # rotary positions: the same for all heads
        return None
    shape = call.tensor(name).shape
    coordinates = torch.unravel_index(elements, shape)
    meeting = {k: set(varying_dims(c)) & set(along) for k, c in enumerate(coordinates)}
    meeting = {k: dims for k, dims in meeting.items() if dims}
    if not meeting:
        return None
    if len(meeting) > 1 and not is_last:  # heads may become single channels, when attention is met

        def bind_later(labels: Tensor) -> str | None:
            return _bind_one(call, name, elements, labels, varying_dims(labels), is_last=True)

        call.labels.postpone(labels, call.module, bind_later)
        return None
    if len(meeting) > 1:
        return f"is combined with {name}, of which several dimensions meet the channels"
    ((axis, dims),) = meeting.items()
    if set(varying_dims(coordinates[axis])) - set(along):
        return f"is combined with {name}, which meets the channels in different ways"
    if dims != set(along):  # the same values for several heads, say: those can be cut, what they share cannot
        call.labels.merge_along(labels, dims, call.module)
        return None
    index = tuple(slice(None) if dim in along else 0 for dim in range(labels.dim()))
    places, found = coordinates[axis].expand(labels.shape)[index].flatten(), labels[index].flatten()
    first = torch.zeros(shape[axis], dtype=torch.long)
    first[places] = found
    call.labels.union(first[places], found, call.module)
    call.labels.attach(name, axis, first)
    path = name.rpartition(".")[0]
    owner = call.model.get_submodule(path)
    call.draft(next((kind for kind, types in _OWNERS.items() if isinstance(owner, types)), "other"), path)
    return None


def prelu(call: Call) -> Any:
    """Pass the channels on; a slope per channel is cut with them."""
    inputs, weight = call.arguments["self"], call.arguments["weight"]
    if not isinstance(inputs, Tensor) or not isinstance(weight, Constant):
        return call.refuse("passes prelu with a slope that depends on the input")
    if weight.shape == (1,) or weight.shape == ():
        return inputs
    path, problem = call.owner(weight, nn.PReLU)
    if problem:
        return call.refuse(f"is read by {call.module}: {problem}")
    assert weight.name is not None
    call.labels.attach(weight.name, 0, call.labels.channel_vector(inputs, 1))
    call.draft("prelu", path)
    return inputs


def prelu_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Number of slopes."""
    weight = tensors.get("weight", module.weight)
    assert isinstance(weight, Tensor)
    return {"num_parameters": len(weight)}


class DenseParameters(Opened):
    """A list or dictionary of parameters that a forward takes from it, whole."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module)

    def _named(self) -> dict[str, Tensor]:
        items = self.module.items() if isinstance(self.module, nn.ParameterDict) else enumerate(self.module)
        return {str(name): parameter for name, parameter in items}

    def __len__(self) -> int:
        return len(self.module)

    def __iter__(self) -> Iterator[Any]:
        named = self._named()
        return iter(named if isinstance(self.module, nn.ParameterDict) else named.values())

    def __contains__(self, name: object) -> bool:
        return name in self.module

    def __getitem__(self, place: Any) -> Any:
        named = self._named()
        return named[place] if isinstance(self.module, nn.ParameterDict) else list(named.values())[place]

    def keys(self) -> KeysView[str]:
        """Those of the dictionary."""
        return self._named().keys()

    def values(self) -> ValuesView[Tensor]:
        """Those of the dictionary."""
        return self._named().values()

    def items(self) -> ItemsView[str, Tensor]:
        """Those of the dictionary."""
        return self._named().items()


class CompactParameters(DenseParameters):
    """The same, cut to the drawn channels."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer, widths)
        self._tensors = ActiveTensors(layer, widths)

    def _named(self) -> dict[str, Tensor]:
        return {**super()._named(), **self._tensors.of(self.module)}


class _Zeroed(Opened):
    """A module of full shape whose own parameters are zero for channels that do not count."""

    def __init__(self, module: nn.Module, layer: Layer):
        super().__init__(module)
        self._axes = {
            item.short: [(dim, layout) for dim, layout in enumerate(item.layouts) if layout]
            for item in layer.parameters
            if any(item.layouts)
        }

    def _zeroed(self, tensor: Tensor, name: str) -> Tensor:
        raise AssertionError("abstract")

    def __getattr__(self, name: str) -> Any:
        """Tensors as they act now."""
        value = super().__getattr__(name)
        return self._zeroed(value, name) if name in vars(self).get("_axes", ()) else value

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module gives."""
        tensors = {name: self._zeroed(getattr(self.module, name), name) for name in self._axes}
        return call_with(self.module, tensors, {}, *inputs, **options)


class DenseProduct(_Zeroed):
    """Zero for inactive channels."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer)
        self._masks = {
            name: [(dim, DenseAxis(layout, widths)) for dim, layout in axes] for name, axes in self._axes.items()
        }
        self._moved = nn.ModuleList(axis for masks in self._masks.values() for _, axis in masks)  # with the model

    def _zeroed(self, tensor: Tensor, name: str) -> Tensor:
        for dim, axis in self._masks[name]:
            tensor = axis.mask(tensor, dim)
        return tensor


class MaskedProduct(_Zeroed):
    """Zero for channels that an architecture drops."""

    def __init__(self, module: nn.Module, layer: Layer, sizes: Mapping[str, int]):
        super().__init__(module, layer)
        self._sizes = sizes

    def _zeroed(self, tensor: Tensor, name: str) -> Tensor:
        for dim, layout in self._axes[name]:
            kept = torch.as_tensor(positions_of(layout, self._sizes), device=tensor.device)
            tensor = torch.zeros_like(tensor).index_copy(dim, kept, tensor.index_select(dim, kept))
        return tensor


def _compact_prelu(module: nn.Module, layer: Any, widths: dict[str, Any]) -> nn.Module:
    return CompactLayer(module, layer, widths, prelu_numbers)


_OWNERS = {"embedding": nn.Embedding, "parameters": (nn.ParameterList, nn.ParameterDict)}  # kinds of others, by type
LABELS = {"prelu": prelu, "_prelu_kernel": prelu}
KINDS = {
    "other": Kind(no_numbers, CompactLayer, DenseLayer, makes={"weight": 0}),
    "prelu": Kind(prelu_numbers, _compact_prelu, DenseLayer),
    "parameters": Kind(no_numbers, CompactParameters, DenseParameters),
    "product": Kind(no_numbers, CompactLayer, DenseProduct, masked=MaskedProduct),
}
