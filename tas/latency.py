"""What every architecture of a graph takes on one machine, predicted from layers that were timed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tas.cost import Gate, Kept, Term
from tas.lookup import Lookup


@dataclass(frozen=True)
class Part:
    """What one call of a layer takes.

    Attributes:
        layer: its name; one that more than two widths reach has several parts, which are summed.
        gate: (depth, position) when it is called in a block that can be dropped.
        lookup: nanoseconds by the sizes of its widths.
    """

    layer: str
    gate: Gate | None
    lookup: Lookup


@dataclass(frozen=True)
class Latency:
    """Nanoseconds of one forward pass: a sum over the layers that are kept, and a rest.

    Attributes:
        parts: of every layer that was timed.
        rest: nanoseconds of everything else.
        device: name of the processor or graphics card.
        threads: of a pass on a CPU.
        batch: samples in a pass.
        full_ms: measured median of the full model, in milliseconds. A fit for a budget need not meet it.
        error: how far predictions are off at most, as a share, in four of five of the measured small models, those near
            to a budget where there is one; they were fitted to these models, so others are off a little more.
        untimed: layers that are in the rest whatever their size.
        runtime: what ran the timed passes.
    """

    parts: tuple[Part, ...]
    rest: int
    device: str
    threads: int
    batch: int
    full_ms: float
    error: float
    untimed: tuple[str, ...] = ()
    runtime: Literal["pytorch", "onnxruntime"] = "pytorch"

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The sum, as terms of a `Cost`."""
        parts = [
            Term(1, gates=() if part.gate is None else (Kept(*part.gate),), lookup=part.lookup) for part in self.parts
        ]
        return (*parts, Term(self.rest))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Latency:
        """Read what `dataclasses.asdict` gives, lists in the place of tuples."""
        return cls(**{**value, "parts": tuple(map(_part, value["parts"])), "untimed": tuple(value["untimed"])})


def _part(value: Mapping[str, Any]) -> Part:
    lookup, gate = value["lookup"], value["gate"]
    one, other = lookup["sides"]
    rows, columns = map(tuple, lookup["grids"])
    found = Lookup((one, other), (rows, columns), tuple(map(tuple, lookup["values"])))
    return Part(value["layer"], (gate[0], gate[1]) if gate else None, found)
