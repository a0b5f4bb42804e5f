"""Numbers on modules that a forward compares with others: where they follow a width, it may take another way.

A block that projects its shortcut `if self.dim != self.dim_out` would not do so where both are cut to one size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tas.graph import Attribute, Graph
from tas.nn.surgery import shared_copy


def compared_numbers(model: nn.Module, graph: Graph, example: Sequence[Tensor]) -> list[list[Attribute]]:
    """Attributes that a forward compares with whole numbers; those of one class together, as they are compared."""
    trial, seen = shared_copy(model), set[tuple[type, str]]()
    for item in graph.attributes:
        module = trial.get_submodule(item.module)
        if item.place is None:
            setattr(module, item.name, _Watched.of(getattr(module, item.name), (type(module), item.name), seen))
    with torch.no_grad():
        trial(*(tensor.clone() for tensor in example))
    found: dict[type, list[Attribute]] = {kind: [] for kind, _ in seen}
    for item in graph.attributes:
        kind = type(model.get_submodule(item.module))
        if (kind, item.name) in seen:
            found[kind].append(item)
    return list(found.values())


class _Watched(int):
    """A number that notes when it is compared with another."""

    _key: tuple[type, str]
    _seen: set[tuple[type, str]]

    @classmethod
    def of(cls, value: int, key: tuple[type, str], seen: set[tuple[type, str]]) -> _Watched:
        """The same number."""
        watched = cls(value)
        watched._key, watched._seen = key, seen
        return watched

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            self._seen.add(self._key)
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: int) -> bool:
        self._seen.add(self._key)
        return int(self) < other

    def __gt__(self, other: int) -> bool:
        self._seen.add(self._key)
        return int(self) > other

    def __le__(self, other: int) -> bool:
        return not self > other

    def __ge__(self, other: int) -> bool:
        return not self < other

    __hash__ = int.__hash__
