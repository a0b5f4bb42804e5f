"""What every rule works with: one call in the exported graph, and what is to be known of a kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer, Layout
from tas.nn.labels import Labels, fixed
from tas.nn.paths import lies_in

PARAMETRISED = "its weight is parametrised; torch.nn.utils.parametrize.remove_parametrizations opens it"


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the input.

    Attributes:
        name: of the parameter or buffer it is, as long as it is exactly that.
        shape: of the tensor.
        elements: gives the tensors it was computed from, each as (name, which of its elements stands at every
            position); the name is empty where nothing is known but the shape.
        value: gives the tensor itself.
        joined: vectors that it was joined of, one after the other, as the biases of queries, keys and values.
    """

    name: str | None
    shape: tuple[int, ...]
    elements: Callable[[], list[tuple[str, Tensor]]]
    value: Callable[[], Any]
    joined: tuple[Constant, ...] = ()

    def stored_name(self) -> str | None:
        """Name of the parameter whose elements these are, in their order; a clone has one too."""
        if self.name is not None:
            return self.name
        found = self.elements()
        if len(found) != 1 or not found[0][0]:
            return None
        name, ids = found[0]
        return name if torch.equal(ids.flatten(), torch.arange(ids.numel())) else None


def positions_in(shape: tuple[int, ...]) -> Tensor:
    """The number of every element of a tensor."""
    return torch.arange(prod(shape)).view(shape)


@dataclass
class Draft:
    """A layer while it is being traced: `products` hold label vectors instead of counts.

    `calls` says how often products were noted; `makers` has, for every call of a norm, the path of the layer whose
    output it alone reads, or None; `channels` what a module reads whose own forward averages over channels, and
    `averaged` the operations that do, with their labels.
    """

    kind: str
    products: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)
    calls: int = 0
    makers: list[str | None] = field(default_factory=list)
    channel_dim: int = 1
    channels: Tensor | None = None
    averaged: list[tuple[str, Tensor]] = field(default_factory=list)


@dataclass
class Call:
    """One operation of the exported graph, its tensors replaced by label tensors.

    Attributes:
        op: name without namespace, overload and in-place underscore.
        arguments: by the operator's own argument names; label tensors, `Constant`s and plain values.
        shapes: of the results.
        module: path of the innermost module, the first that it has.
        called: the path by which it is called.
        labels: of the whole trace.
        drafts: layers found so far, by path.
        model: the module tree.
        batch: samples in the example.
        maker: path of the layer that made the first argument, if nothing else reads it.
        entry: gives the label tensor that the innermost module reads, if there is one.
        example: gives values for all arguments, noise in the place of labels.
        namespace: of the operation: aten, or that of the package which registered it.
    """

    op: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    module: str
    called: str
    labels: Labels
    drafts: dict[str, Draft]
    model: nn.Module
    batch: int
    maker: str | None = None
    entry: Callable[[], Tensor | None] = lambda: None
    example: Callable[[], dict[str, Any]] = dict
    namespace: str = "aten"

    @property
    def operation(self) -> Callable[..., Any]:
        """What computes it, never in place."""
        return getattr(getattr(torch.ops, self.namespace), self.op)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only result."""
        return self.shapes[0]

    def label_tensors(self) -> list[Tensor]:
        """Every label tensor among the arguments, lists included."""
        return [item for item in self._items() if isinstance(item, Tensor)]

    def constants(self) -> list[Constant]:
        """Every constant among the arguments, lists included."""
        return [item for item in self._items() if isinstance(item, Constant)]

    def _items(self) -> list[Any]:
        return [
            item
            for value in self.arguments.values()
            for item in (value if isinstance(value, list | tuple) else [value])
        ]

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the model."""
        path, _, short = name.rpartition(".")
        return getattr(self.model.get_submodule(path), short)

    def refuse(self, reason: str) -> Any:
        """Freeze every label that comes in and give back unlabelled results."""
        for labels in self.label_tensors():
            self.labels.freeze(labels, reason, self.module)
        results = [fixed(shape) for shape in self.shapes]
        return results[0] if len(results) == 1 else results

    def draft(self, kind: str, path: str | None = None) -> Draft:
        """The layer at this module path, or at another; a module that was known as no layer becomes one."""
        found = self.drafts.setdefault(self.module if path is None else path, Draft(kind))
        if found.kind == "other":
            found.kind = kind
        return found

    def count(self, draft: Draft, macs: int, factors: tuple[Tensor, ...] = ()) -> None:
        """Note multiply-adds of one sample; those of a layer that is lent to a block go when that is dropped."""
        draft.calls += 1
        noted = draft if self.called == self.module else self.draft("other", self.called)
        noted.products.append((macs, factors))

    def is_parametrised(self) -> bool:
        """Whether the module computes its parameters from others (`torch.nn.utils.parametrize`)."""
        return torch.nn.utils.parametrize.is_parametrized(self.model.get_submodule(self.module))

    def owner(self, weight: Constant | Tensor, kind: type[nn.Module]) -> tuple[str, str | None]:
        """Path of the layer that stores a weight, and why it cannot be opened, or None if it can.

        A forward may use the weight of a module inside. A subclass may have a forward of its own; the supernet calls
        it, and the self-check has the last word.
        """
        name = weight.name if isinstance(weight, Constant) else None
        if name is None:
            return (
                self.module,
                PARAMETRISED if self.is_parametrised() else "its weight is computed in forward, not stored",
            )
        path, _, short = name.rpartition(".")
        if short != "weight" or not lies_in(path, self.module):
            what = "is no weight of a layer" if path == self.module else "belongs to another module"
            return self.module, f"its weight {name} {what}"
        owner = self.model.get_submodule(path)
        if not isinstance(owner, kind):
            return path, f"{type(owner).__name__} is not a layer with a rule"
        if torch.nn.utils.parametrize.is_parametrized(owner):
            return path, PARAMETRISED
        return path, None


@dataclass(frozen=True)
class Kind:
    """What is to be known of a kind of layer besides its labels and cost.

    Attributes:
        numbers: what the module keeps beside its tensors and must follow them (`out_channels`); called with
            (module of full size, cut tensors by name).
        compact: make the module that computes only the drawn channels; called with (module, layer, widths).
        dense: make the module that keeps full shapes; called likewise.
        makes: by name of the parameter, the axis on which the layer makes channels.
        reads: by name of the parameter, the axis on which the layer reads channels.
        masked: make the full-shape module that ignores channels; called with (module, layer, sizes). None where it is
            enough that nobody reads them.
        becomes: class of the cut module, where the user's own cannot have every size.
    """

    numbers: Numbers
    compact: Callable[[nn.Module, Layer, dict[str, Any]], nn.Module]
    dense: Callable[[nn.Module, Layer, dict[str, Any]], nn.Module]
    makes: Mapping[str, int] = field(default_factory=dict)
    reads: Mapping[str, int] = field(default_factory=dict)
    masked: Callable[[nn.Module, Layer, Mapping[str, int]], nn.Module] | None = None
    becomes: type[nn.Module] | None = None


Numbers = Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Any]]
LabelRule = Callable[[Call], Any]


def layout_of(layer: Layer, parameter: str, dim: int) -> Layout | None:
    """Layout of one axis of one of the layer's own parameters; None where it is never cut or there is none."""
    for item in layer.parameters:
        if item.short == parameter:
            return item.layouts[dim]
    return None
