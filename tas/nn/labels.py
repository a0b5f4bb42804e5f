"""Channels as integer labels that flow through a graph and merge where they must be cut together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

TIED = "; its input and output keep one width"  # ends the reason why a block is not free
FIXED = 0  # the label of everything that is not a channel made by a layer: pixels, padding, refused outputs


@dataclass(frozen=True)
class Freeze:
    """Labels that must stay, and why."""

    labels: np.ndarray
    reason: str
    module: str


@dataclass(frozen=True)
class Heads:
    """Channels that a module splits into heads, next to the channels it reads, equally many.

    Attributes:
        module: its path.
        split: labels of its heads' channels, one head after the other.
        entry: labels of the channels it reads.
        shape: of what it reads.
    """

    module: str
    split: Tensor
    entry: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Echo:
    """Channels that a module gives a shape in numbers, and equally many others that these numbers may be of.

    Attributes:
        module: its path.
        made: labels of the channels it shapes.
        read: labels of the channels it reads, or shapes by the same number that it keeps.
    """

    module: str
    made: Tensor
    read: Tensor


@dataclass(frozen=True)
class Passage:
    """Channels that pass an open shortcut.

    Attributes:
        path: of the shortcut.
        reads: labels that come in.
        makes: labels that go out, equally many.
        positions: pixels per sample.
    """

    path: str
    reads: Tensor
    makes: Tensor
    positions: int


@dataclass
class Stage:
    """What the blocks of one depth give.

    Attributes:
        outputs: labels of the channels behind every block, by its place.
        exit: labels that are read behind the last one in their stead; None until it was met.
    """

    outputs: dict[int, Tensor] = field(default_factory=dict)
    exit: Tensor | None = None


class Labels:
    """The labels of one trace: a union-find, the axes they reached, and what froze them.

    Attributes:
        heads: what modules split into heads.
        echoes: channels that modules shape by a number, which may be that of the channels they read.
        passages: open shortcuts that were met.
        stages: depths of blocks with open shortcuts, by name.
        tied: why a shortcut or depth is not open after all, by path.
        axes: labels on an axis of a parameter.
        freezes: labels that must stay.
    """

    def __init__(self):
        self._parent = [FIXED]
        self._grids: list[Tensor] = []
        self._postponed: list[tuple[Tensor, str, Callable[[Tensor], str | None]]] = []
        self.heads: list[Heads] = []
        self.echoes: list[Echo] = []
        self.passages: list[Passage] = []
        self.stages: dict[str, Stage] = {}
        self.tied: dict[str, str] = {}
        self.axes: dict[tuple[str, int], np.ndarray] = {}
        self.freezes: list[Freeze] = []

    def fresh(self, count: int) -> Tensor:
        """Make `count` new labels, ascending."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def attach(self, parameter: str, dim: int, labels: Tensor) -> None:
        """Say that position i of this axis is cut with label i; a second call merges (a module called twice)."""
        known = self.axes.get((parameter, dim))
        if known is None:
            self.axes[parameter, dim] = labels.numpy().copy()
        else:
            self.union(torch.as_tensor(known), labels)

    def freeze(self, labels: Tensor, reason: str, module: str) -> None:
        """Never cut these labels; the first reason given counts."""
        found = np.unique(condense(labels).numpy())
        found = found[found > FIXED]
        if found.size:
            self.freezes.append(Freeze(found, reason, module))

    def union(self, one: Tensor, other: Tensor, module: str = "") -> None:
        """Merge two tensors of labels position by position; shapes must broadcast."""
        one, other = torch.broadcast_tensors(one, other)
        one, other = _condense_together(one, other)
        different = (one != other).flatten()
        pairs = torch.stack([one.flatten()[different], other.flatten()[different]], 1).unique(dim=0)
        fixed = pairs[(pairs == FIXED).any(1)]
        if len(fixed):
            self.freeze(
                fixed,
                "is combined with values that are not channels (the input, padding, or what a refused layer gives)",
                module,
            )
        for first, second in pairs[(pairs != FIXED).all(1)].tolist():
            low, high = sorted((self._find(first), self._find(second)))
            self._parent[high] = low  # the smallest label names the class: the order of channels is the maker's

    def merge_along(self, labels: Tensor, dims: Iterable[int], module: str = "") -> None:
        """Merge what differs along these dimensions alone."""
        first = labels
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self.union(labels, first, module)

    def expect_grid(self, labels: Tensor) -> None:
        """Say that what is kept of this tensor must be a tensor again, whichever labels are cut.

        `settle` sees to it once everything else is known: labels may differ along one dimension only.
        """
        self._grids.append(condense(labels))

    def postpone(self, labels: Tensor, module: str, bind: Callable[[Tensor], str | None]) -> None:
        """Call `bind` with what has become of these labels once everything else is known; a problem freezes them."""
        self._postponed.append((labels, module, bind))

    def settle(self) -> None:
        """Merge along all dimensions but one wherever labels still differ along several: where most of them differ.

        A merge elsewhere never makes labels differ that did not, so every grid is looked at once.
        """
        for labels, module, bind in self._postponed:
            problem = bind(self._current(condense(labels)).expand(labels.shape))
            if problem:
                self.freeze(labels, problem, module)
        self._postponed = []
        for grid in self._grids:
            current = self._current(grid)
            varying = varying_dims(current)
            if len(varying) > 1:
                kinds = {dim: along(current, dim).unique().numel() for dim in varying}
                widest = max(varying, key=lambda dim: kinds[dim])
                self.merge_along(grid, [dim for dim in varying if dim != widest])
        self._grids = []

    def _current(self, labels: Tensor) -> Tensor:
        found, places = labels.unique(return_inverse=True)
        return torch.tensor([self._find(label) for label in found.tolist()])[places]

    def _find(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self) -> np.ndarray:
        """The class of every label."""
        roots = np.array(self._parent, dtype=int)
        while not np.array_equal(roots, higher := roots[roots]):
            roots = higher
        return roots

    def channel_vector(self, labels: Tensor, dim: int) -> Tensor:
        """Labels along one dimension; positions that differ along the others are merged."""
        first = along(labels, dim) if labels.numel() else labels.new_zeros(0)
        if any(other != dim % labels.dim() for other in varying_dims(labels)):
            shape = [1] * labels.dim()
            shape[dim] = -1
            self.union(labels, first.view(shape))
        return first


def along(labels: Tensor, dim: int) -> Tensor:
    """Labels along one dimension, at the first position of all others."""
    return labels.movedim(dim, -1).reshape(-1, labels.shape[dim])[0]


def expanded(labels: Tensor) -> Tensor:
    """The same labels, kept once along every dimension where all are the same: what follows need not look again."""
    shape = labels.shape
    for dim in range(labels.dim()):
        if labels.shape[dim] < 2:
            continue
        first = labels.narrow(dim, 0, 1)
        if labels.stride(dim) == 0 or (
            torch.equal(first, labels.narrow(dim, -1, 1)) and torch.equal(labels, first.expand_as(labels))
        ):
            labels = first
    return labels.expand(shape)


def varying_dims(labels: Tensor) -> list[int]:
    """Dimensions along which the labels are not all the same."""
    return [dim for dim, stride in enumerate(expanded(labels).stride()) if stride != 0 and labels.shape[dim] > 1]


def spread(vector: Tensor, dim: int, shape: tuple[int, ...]) -> Tensor:
    """Lay a vector of labels along `dim` of a tensor of `shape`, without copying it."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.view(view).expand(shape)


def fixed(shape: tuple[int, ...]) -> Tensor:
    """A tensor of positions that are not channels."""
    return torch.full((), FIXED).expand(shape)


def condense(labels: Tensor) -> Tensor:
    """Drop the copies along expanded dimensions."""
    for dim in range(labels.dim()):
        if labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, min(1, labels.shape[dim]))
    return labels


def _condense_together(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    for dim in range(one.dim()):
        if one.stride(dim) == 0 and other.stride(dim) == 0:
            length = min(1, one.shape[dim])
            one, other = one.narrow(dim, 0, length), other.narrow(dim, 0, length)
    return one, other
