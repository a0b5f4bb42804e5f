"""Residual streams whose blocks have widths of their own: shortcuts that align them, and what a stage hands on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tas.architecture import Architecture
from tas.cost import Count, Gate, Kept, Side, Term


@dataclass(frozen=True)
class Shortcut:
    """An identity around a block: a 1x1 convolution with batch norm stands there wherever the sizes at its ends differ.

    Attributes:
        block: path of the module that holds it.
        attribute: name of the replaceable child there, such as `downsample`.
        reads: name of the width or exit that comes in; None where it is never cut.
        makes: name of the width that goes out; None where it is never cut.
        channels: of both in the full model.
        positions: pixels per sample.
        gate: (depth, position) when it lies in a block that can be dropped.
    """

    block: str
    attribute: str
    reads: str | None
    makes: str | None
    channels: int
    positions: int
    gate: Gate | None = None

    @property
    def path(self) -> str:
        """Where the projection stands."""
        return f"{self.block}.{self.attribute}".lstrip(".")

    def sizes(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Channels that come in and go out."""
        reads, makes = (self.channels if side is None else sizes[side] for side in (self.reads, self.makes))
        return reads, makes

    def terms(self, quantity: str) -> list[Term]:
        """Cost of the projection: the product of both sizes, and for parameters a norm with scale and shift."""
        ends: list[Side] = [self.channels if side is None else side for side in (self.reads, self.makes)]
        read, made = (Count(side) if isinstance(side, int) else Count(0, ((side, 1),)) for side in ends)
        gates, unequal = gates_of(self.gate), (ends[0], ends[1])
        if quantity == "macs":
            return [Term(self.positions, (read, made), gates, unequal)]
        return [Term(1, (read, made), gates, unequal), Term(2, (made,), gates, unequal)]


@dataclass(frozen=True)
class Exit:
    """What is read behind a depth: as wide as the last block that is kept. It stands in layouts like a width.

    Attributes:
        name: `layer1:exit`.
        depth: name of the depth.
        widths: of the output of every block; None where it is never cut.
        channels: in the full model.
    """

    name: str
    depth: str
    widths: tuple[str | None, ...]
    channels: int

    def size(self, architecture: Architecture) -> int:
        """Channels under `architecture`."""
        width = self.widths[architecture.depths[self.depth] - 1]
        return self.channels if width is None else architecture.widths[width]


def gates_of(gate: Gate | None) -> tuple[Kept, ...]:
    """The condition under which the block of a layer is kept."""
    return () if gate is None else (Kept(*gate),)


def resolved(terms: Iterable[Term], exits: Sequence[Exit]) -> list[Term]:
    """The same costs in widths alone: a term with an exit becomes one for every number of blocks that may be kept."""
    found = list(terms)
    for exit_ in exits:
        found = [part for term in found for part in _resolved(term, exit_)]
    return found


def _resolved(term: Term, exit_: Exit) -> list[Term]:
    names = {width for factor in term.factors for width, _ in factor.widths} | {*(term.ends or ())}
    if exit_.name not in names:
        return [term]
    parts = []
    for kept, width in enumerate(exit_.widths, start=1):
        side: Side = exit_.channels if width is None else width
        factors = tuple(renamed(factor, exit_.name, side) for factor in term.factors)
        ends = term.ends and tuple(side if end == exit_.name else end for end in term.ends)
        lookup = term.lookup and replace(term.lookup, sides=ends)
        gates = (*term.gates, Kept(exit_.depth, kept - 1, kept))
        parts.append(replace(term, factors=factors, gates=gates, unequal=None if lookup else ends, lookup=lookup))
    return parts


def renamed(count: Count, name: str, side: Side) -> Count:
    """A count in which another width, or a number, stands for one width."""
    times = dict(count.widths)
    if name not in times:
        return count
    number = times.pop(name)
    if isinstance(side, int):
        return Count(count.constant + number * side, tuple(times.items()))
    times[side] = times.get(side, 0) + number
    return Count(count.constant, tuple(times.items()))


def streams(shortcuts: Iterable[Shortcut], exits: Iterable[Exit]) -> list[frozenset[str | None]]:
    """Widths and exits that shortcuts connect: channel j of one is added to channel j of the next.

    A set with None holds channels that must stay where they are.
    """
    groups: list[set[str | None]] = []
    links = [{item.reads, item.makes} for item in shortcuts] + [{item.name, *item.widths} for item in exits]
    for link in links:
        touched = [group for group in groups if (group & link) - {None}]
        groups = [group for group in groups if not any(group is other for other in touched)]
        groups.append(link.union(*touched))
    return [frozenset(group) for group in groups]
