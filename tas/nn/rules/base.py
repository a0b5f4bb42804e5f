"""What every rule works with: one call in the exported graph, and what is to be known of a kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer
from tas.nn.labels import FIXED, Labels, fixed


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the input; `name` is set while it is exactly a parameter or buffer."""

    name: str | None
    shape: tuple[int, ...]


@dataclass
class Draft:
    """A layer while it is being traced: `products` hold label vectors instead of counts.

    `makers` has, for every call of a norm, the path of the layer whose output it alone reads, or None.
    """

    kind: str
    products: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)
    makers: list[str | None] = field(default_factory=list)


@dataclass
class Call:
    """One operation of the exported graph, its tensors replaced by label tensors.

    Attributes:
        op: name without namespace, overload and in-place underscore.
        arguments: by the operator's own argument names; label tensors, `Constant`s and plain values.
        shapes: of the results.
        module: path of the innermost module.
        labels: of the whole trace.
        drafts: layers found so far, by path.
        model: the module tree.
        batch: samples in the example.
        maker: path of the layer that made the first argument, if nothing else reads it.
    """

    op: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    module: str
    labels: Labels
    drafts: dict[str, Draft]
    model: nn.Module
    batch: int
    maker: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only result."""
        return self.shapes[0]

    def label_tensors(self) -> list[Tensor]:
        """Every label tensor among the arguments, lists included."""
        found = []
        for value in self.arguments.values():
            found += [
                item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, Tensor)
            ]
        return found

    def constants(self) -> list[Constant]:
        """Every constant among the arguments, lists included."""
        found = []
        for value in self.arguments.values():
            items = value if isinstance(value, list | tuple) else [value]
            found += [item for item in items if isinstance(item, Constant)]
        return found

    def refuse(self, reason: str) -> Any:
        """Freeze every label that comes in and give back unlabelled results."""
        for labels in self.label_tensors():
            self.labels.freeze(labels, reason, self.module)
        results = [fixed(shape) for shape in self.shapes]
        return results[0] if len(results) == 1 else results

    def draft(self, kind: str) -> Draft:
        """The layer at this module path."""
        return self.drafts.setdefault(self.module, Draft(kind))

    def owner(self, parameter: Any, kind: type[nn.Module]) -> str | None:
        """Why this layer cannot be opened, or None if it can: a module of this kind that stores the weight itself.

        A subclass may have a forward of its own; the supernet calls it, and the self-check has the last word.
        """
        owner = self.model.get_submodule(self.module)
        if not isinstance(parameter, Constant) or parameter.name is None:
            return "its weight is computed in forward, not stored"
        if parameter.name != f"{self.module}.weight":
            return f"its weight {parameter.name} belongs to another module"
        if not isinstance(owner, kind):
            return f"{type(owner).__name__} is not a layer with a rule"
        if torch.nn.utils.parametrize.is_parametrized(owner):
            return "its weight is parametrised"
        return None


@dataclass(frozen=True)
class Kind:
    """What is to be known of a kind of layer besides its labels and cost.

    Attributes:
        resize: set the module's size attributes from the shapes of its parameters, after these were cut.
        compact: make the module that computes only the drawn channels; called with (module, layer, widths).
        dense: make the module that keeps full shapes; called likewise.
    """

    resize: Callable[[nn.Module], None]
    compact: Callable[[nn.Module, Layer, dict[str, Any]], nn.Module]
    dense: Callable[[nn.Module, Layer, dict[str, Any]], nn.Module]


LabelRule = Callable[[Call], Any]


def layout_of(layer: Layer, parameter: str, dim: int):
    """Layout of one axis of one of the layer's own parameters; None where it is never cut or there is none."""
    for item in layer.parameters:
        if item.name == f"{layer.name}.{parameter}":
            return item.layouts[dim]
    return None


def is_all_fixed(labels: Tensor) -> bool:
    """Whether no position is a channel."""
    return bool((labels == FIXED).all())
