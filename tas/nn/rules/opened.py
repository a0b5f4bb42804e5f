"""What stands in the place of a user's module: itself with some of its tensors replaced, or nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tas.graph import Depth, Layer
from tas.nn.mixing import CompactAxis, CompactWidth
from tas.nn.rules.base import Numbers


class Opened(nn.Module):
    """What stands in the place of a module of the user's; a forward that asks it for something gets that module's.

    Attributes:
        module: the user's own.
    """

    module: Any

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self._first = module._first if isinstance(module, Opened) else first_argument(module)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The first argument has its place, also where it is given by the name that the module has for it."""
        if not inputs and self._first in options:
            inputs = (options.pop(self._first),)
        return super().__call__(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        """What is not found here is the module's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def __getitem__(self, place: Any) -> Any:
        """What a list has there."""
        return self.module[place]


class Dropped(nn.Identity):
    """What stands where a block was; blocks may take more than one argument, and return more than one value.

    Args:
        block: whose numbers, words and lists stay, since a forward around it may read them.
        depth: whose block it was.
    """

    def __init__(self, block: nn.Module, depth: Depth):
        super().__init__()
        self.__dict__.update({name: held for name, held in vars(block).items() if name[0] != "_" and _is_plain(held)})
        self._returns, self._is_added, self._first = depth.returns, depth.is_added, first_argument(block)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The first argument as `handed_on` says, or zeros where they are added to it."""
        first = inputs[0] if inputs else options.pop(self._first)
        first = torch.zeros_like(first) if self._is_added else first
        return handed_on((first, *inputs[1:], *options.values()), self._returns)


def handed_on(given: Sequence[Any], returns: int) -> Any:
    """What stands for the results of a block that is left out, with what it was given.

    The first argument; in a tuple where the block returns one, with sizes that it was given (MViT's) and nothing else.
    """
    if not returns:
        return given[0]
    others = (value if isinstance(value, list | tuple) and _is_plain(value) else None for value in given[1:returns])
    return (given[0], *others, *[None] * (returns - len(given)))


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def first_argument(module: nn.Module) -> str:
    """How a module's forward calls what it takes first; empty where it takes nothing by name."""
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    return first.name if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else ""


def no_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """For modules that keep no number that must follow their tensors."""
    return {}


def call_with(module: nn.Module, tensors: dict[str, Tensor], numbers: dict[str, Any], *inputs: Any, **options: Any):
    """Call a module with other tensors and other numbers (`groups`) than it has."""
    before = {name: getattr(module, name) for name in numbers}
    try:
        for name, value in numbers.items():
            setattr(module, name, value)
        return functional_call(module, tensors, inputs, options, tie_weights=False)
    finally:
        for name, value in before.items():
            setattr(module, name, value)


class ActiveTensors:
    """The own tensors of a layer, cut to the sizes drawn now."""

    def __init__(self, layer: Layer, widths: dict[str, CompactWidth]):
        self._axes = {
            item.short: [
                (dim, CompactAxis(layout, widths)) for dim, layout in enumerate(item.layouts) if layout is not None
            ]
            for item in layer.parameters
        }

    def __contains__(self, name: str) -> bool:
        return bool(self._axes.get(name))

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """Every tensor with an open axis, by name; views where possible."""
        return {name: self.one(module, name) for name, axes in self._axes.items() if axes}

    def one(self, module: nn.Module, name: str) -> Tensor:
        """The tensor of this name."""
        tensor = getattr(module, name)
        for dim, axis in self._axes[name]:
            tensor = axis.take(tensor, dim)
        return tensor


class CompactLayer(Opened):
    """A module that computes only the drawn channels, because its own tensors are cut to them."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, CompactWidth], numbers: Numbers = no_numbers):
        super().__init__(module)
        self._tensors = ActiveTensors(layer, widths)
        self._numbers = numbers

    def __getattr__(self, name: str) -> Any:
        """Tensors as they act now: a forward around it may read the weight of an embedding, or call a method."""
        if "_tensors" in vars(self) and name in self._tensors:
            return self._tensors.one(self.module, name)
        value = super().__getattr__(name)
        is_own = isinstance(value, MethodType) and value.__self__ is self.module
        return MethodType(value.__func__, self) if is_own else value

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module gives, for active channels in and out."""
        tensors = self._tensors.of(self.module)
        return call_with(self.module, tensors, self._numbers(self.module, tensors), *inputs, **options)


class DenseLayer(Opened):
    """A module that in full shape needs nothing: it passes every channel on by itself."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module gives."""
        return self.module(*inputs, **options)
