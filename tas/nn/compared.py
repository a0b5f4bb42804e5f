"""Numbers on modules that a forward compares with others: where they follow a width, it may take another way.

A block that projects its shortcut `if self.dim != self.dim_out` would not do so where both are cut to one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tas.graph import Attribute, Graph
from tas.nn.surgery import shared_copy

Compared = dict[Attribute, set[int]]  # the numbers that each was compared with


def compared_numbers(model: nn.Module, graph: Graph, example: Sequence[Tensor]) -> list[Compared]:
    """Attributes that a forward compares with whole numbers; those of one class together, as they are compared."""
    trial, seen = shared_copy(model), dict[Attribute, set[int]]()
    for item in graph.attributes:
        if item.place is None:
            module = trial.get_submodule(item.module)
            setattr(module, item.name, _Watched.of(getattr(module, item.name), item, seen))
    try:
        with torch.no_grad():
            trial(*(tensor.clone() for tensor in example))
    except Exception:  # a forward of the user's may want nothing but plain numbers
        return []
    found: dict[type, Compared] = {}
    names = {(type(model.get_submodule(item.module)), item.name) for item in seen}
    for item in graph.attributes:
        kind = type(model.get_submodule(item.module))
        if (kind, item.name) in names:
            found.setdefault(kind, {})[item] = seen.get(item, set())
    return list(found.values())


def checked_numbers(model: nn.Module, graph: Graph, numbers: Sequence[Attribute], example: Sequence[Tensor]) -> Graph:
    """The graph with those numbers, too, that a forward compares with an equal one, as in `assert C == self.dim`."""
    checked = []
    for compared in compared_numbers(model, replace(graph, attributes=tuple(numbers)), example) if numbers else ():
        names = {
            item.name for item, seen in compared.items() if getattr(model.get_submodule(item.module), item.name) in seen
        }
        checked += [item for item in compared if item.name in names]
    return replace(graph, attributes=(*graph.attributes, *checked)) if checked else graph


class _Watched(int):
    """A number that notes when it is compared with another."""

    _item: Attribute
    _seen: Compared

    @classmethod
    def of(cls, value: int, item: Attribute, seen: Compared) -> _Watched:
        """The same number."""
        watched = cls(value)
        watched._item, watched._seen = item, seen
        return watched

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            self._seen.setdefault(self._item, set()).add(int(other))
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: int) -> bool:
        self._seen.setdefault(self._item, set())
        return int(self) < other

    def __gt__(self, other: int) -> bool:
        self._seen.setdefault(self._item, set())
        return int(self) > other

    def __le__(self, other: int) -> bool:
        return not self > other

    def __ge__(self, other: int) -> bool:
        return not self < other

    __hash__ = int.__hash__
