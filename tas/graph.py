"""What `trace` knows about a model, as plain values: widths, depths, layers with their cost, and what stays frozen."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

from tas.architecture import Architecture
from tas.columns import columns
from tas.cost import Cost, Term
from tas.errors import ArchitectureError, BudgetError
from tas.graph_parts import (
    Attribute,
    Depth,
    Frozen,
    Layer,
    Parameter,
    Width,
    read_count,
    read_gate,
    read_layer,
)
from tas.latency import Latency
from tas.layout import Layout, Run, Whole, channels_of, count_of, positions_of, whole_width
from tas.streams import Exit, Shortcut, gates_of, resolved, streams

__all__ = [
    "Attribute", "Depth", "Exit", "Frozen", "Graph", "Layer", "Layout", "Parameter", "Run", "Shortcut", "Whole",
    "Width", "channels_of", "count_of", "positions_of", "whole_width",
]  # fmt: skip

# 1 had no attributes, no norms over channels, 2 no shortcuts, 3 no latency, 4 no tuples, 5 no branches, 6 no runtime
FORMAT = 7
SHOWN = 5  # modules that are named where more are left alone for one reason


@dataclass(frozen=True)
class Graph:
    """What can be chosen in a model and what every choice costs.

    Attributes:
        widths: what can be narrowed.
        depths: what can be shortened.
        layers: every module with parameters or multiply-adds, in order of execution.
        frozen: every axis that is left alone, with the reason.
        input_shapes: of the example, batch included.
        attributes: numbers on modules that follow the widths.
        shortcuts: identities whose ends have widths of their own.
        exits: what depths of such blocks hand on; their names stand in layouts and counts like those of widths.
        latency: what every choice takes on one machine; None until it is measured (`tas.with_latency`).
    """

    widths: tuple[Width, ...]
    depths: tuple[Depth, ...]
    layers: tuple[Layer, ...]
    frozen: tuple[Frozen, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    attributes: tuple[Attribute, ...] = ()
    shortcuts: tuple[Shortcut, ...] = ()
    exits: tuple[Exit, ...] = ()
    latency: Latency | None = None

    def __repr__(self) -> str:
        """What can be cut, with its share of the multiply-adds, and what is left alone and why."""
        known = ", with latency" if self.latency else ""
        parts = [
            f"Graph: {self.macs():,} macs, {self.params():,} params{known}; "
            f"{100 * self.open_share:.1f} % of the macs can be cut"
        ]
        if self.widths:
            rows = [(one.name, f"{one.size:,}", str(len(one.layers)), self._share(one.layers)) for one in self.widths]
            parts.append(columns([("width", "channels", "layers", "macs"), *rows]))
        if self.depths:
            rows = [(one.name, str(len(one.blocks)), self._share(self.layers_of(one.name))) for one in self.depths]
            parts.append(columns([("depth", "blocks", "macs"), *rows]))
        reasons: dict[str, dict[str, None]] = {}
        for item in self.frozen:
            reasons.setdefault(item.reason, {})[item.module or "-"] = None
        parts += [f"left alone: {_some(list(modules))}: {reason}" for reason, modules in reasons.items()]
        return "\n\n".join(parts)

    def layers_of(self, depth: str) -> list[str]:
        """Names of the layers in blocks of this depth that can be dropped."""
        return [layer.name for layer in self.layers if layer.gate and layer.gate[0] == depth]

    def _share(self, layers: Iterable[str]) -> str:
        """Of the multiply-adds, in these layers."""
        return f"{100 * sum(self.layer_macs[name] for name in layers) / max(1, self.macs()):.1f} %"

    @cached_property
    def full(self) -> Architecture:
        """The architecture of the model as it is."""
        return Architecture(
            {width.name: width.size for width in self.widths}, {depth.name: len(depth.blocks) for depth in self.depths}
        )

    def macs(self, architecture: Architecture | None = None) -> int:
        """Multiply-adds per sample of convolutions and linear layers; of the full model by default."""
        return self.cost("macs").exact(self.check(architecture))

    def params(self, architecture: Architecture | None = None) -> int:
        """Number of parameters; of the full model by default."""
        return self.cost("params").exact(self.check(architecture))

    def sizes(self, architecture: Architecture) -> dict[str, int]:
        """Channels of everything that stands in layouts: the widths as chosen, and the exits that follow from them."""
        return {**architecture.widths, **{item.name: item.size(architecture) for item in self.exits}}

    @cached_property
    def streams(self) -> list[frozenset[str | None]]:
        """Widths and exits of one full size that shortcuts connect; a set with None has channels that are never cut."""
        return streams(self.shortcuts, self.exits)

    @cached_property
    def _costs(self) -> dict[str, Cost]:
        terms = {"macs": [], "params": []}
        for layer in self.layers:
            gates = gates_of(layer.gate)
            terms["macs"] += [Term(times, factors, gates) for times, factors in layer.products]
            terms["params"] += [Term(1, item.counts, gates) for item in layer.parameters if not item.is_buffer]
        for quantity, found in terms.items():
            found += [term for shortcut in self.shortcuts for term in shortcut.terms(quantity)]
        if self.latency is not None:
            terms["latency"] = [*self.latency.terms]
        return {quantity: Cost(tuple(resolved(found, self.exits))) for quantity, found in terms.items()}

    @cached_property
    def layer_macs(self) -> dict[str, int]:
        """Multiply-adds per sample of every layer of the full model, by layer name."""
        sizes = self.sizes(self.full)
        return {
            layer.name: sum(times * prod(factor.of(sizes) for factor in factors) for times, factors in layer.products)
            for layer in self.layers
        }

    @property
    def open_share(self) -> float:
        """Share in [0, 1] of the full model's multiply-adds in layers that a width narrows or a depth can drop."""
        gated = {layer.name for layer in self.layers if layer.gate}
        narrowed = {x.name for x in self.layers for _, counts in x.products if any(count.widths for count in counts)}
        return sum(self.layer_macs[name] for name in gated | narrowed) / max(1, self.macs())

    def cost(self, quantity: str) -> Cost:
        """The polynomial of `macs` or `params`, or of `latency` in nanoseconds.

        Raises:
            BudgetError: the latency was not measured.
        """
        if quantity == "latency" and self.latency is None:
            raise BudgetError(
                "a latency needs times measured on this machine; give the graph to tas.with_latency first "
                "(tas compress and tas search do), or give a budget of macs or params"
            )
        return self._costs[quantity]

    def full_cost(self, quantity: str) -> int:
        """What the full model costs: `macs` or `params`, or its measured `latency` in nanoseconds.

        Raises:
            BudgetError: the latency was not measured.
        """
        if quantity == "latency" and self.latency is not None:
            return round(self.latency.full_ms * 1e6)
        return self.cost(quantity).exact(self.full)

    def check(self, architecture: Architecture | None) -> Architecture:
        """Return `architecture`, or the full one for None.

        Raises:
            ArchitectureError: names or sizes are not this graph's.
        """
        if architecture is None:
            return self.full
        for what, given, full in (
            ("width", architecture.widths, self.full.widths),
            ("depth", architecture.depths, self.full.depths),
        ):
            if given.keys() != full.keys():
                odd = sorted(given.keys() ^ full.keys())
                raise ArchitectureError(
                    f"the architecture does not belong to this graph: {what} {odd[0]!r} is in one and not in the other "
                    f"({len(odd)} such); trace the model it was made for, with the same options"
                )
            excluded = {width.name: width.excluded for width in self.widths if width.excluded}
            for name, size in given.items():
                if not 1 <= size <= full[name]:
                    raise ArchitectureError(f"{what} {name!r} keeps {size}; the model has 1 to {full[name]}")
                if what == "width" and size in excluded.get(name, ()):
                    raise ArchitectureError(f"width {name!r} keeps {size}, a size that its forward does not allow")
        return architecture

    def skipped(self, architecture: Architecture) -> tuple[str, ...]:
        """Paths of the blocks that `architecture` drops."""
        return tuple(block for depth in self.depths for block in depth.blocks[architecture.depths[depth.name] :])

    def idle(self, architecture: Architecture) -> frozenset[str]:
        """Widths that stand in dropped blocks alone: whatever is chosen for them, the network is the same."""
        paid = [
            term.factors
            for term in self.cost("params").terms
            if all(gate.holds(architecture.depths[gate.depth]) for gate in term.gates)
        ]
        used = {width for factors in paid for factor in factors for width, _ in factor.widths}
        return frozenset(architecture.widths.keys() - used)

    def to_dict(self) -> dict[str, Any]:
        """The graph in plain lists and mappings, for JSON."""
        return {"format": FORMAT, **asdict(self)}

    def to_json(self) -> str:
        """The graph as JSON text."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read what `to_json` wrote.

        Raises:
            ArchitectureError: the text is not a graph, or one of a newer format.
        """
        try:
            value = json.loads(text)
            if value.pop("format") > FORMAT:
                raise ArchitectureError("this graph was written by a newer tas; upgrade, or trace the model again")
            return cls(
                tuple(
                    Width(v["name"], v["size"], tuple(v["layers"]), tuple(v.get("excluded", ())))
                    for v in value["widths"]
                ),
                tuple(Depth(**{**v, "blocks": tuple(v["blocks"])}) for v in value["depths"]),
                tuple(read_layer(v) for v in value["layers"]),
                tuple(Frozen(**v) for v in value["frozen"]),
                tuple(tuple(shape) for shape in value["input_shapes"]),
                tuple(Attribute(**{**v, "count": read_count(v["count"])}) for v in value.get("attributes", ())),
                tuple(Shortcut(**{**v, "gate": read_gate(v["gate"])}) for v in value.get("shortcuts", ())),
                tuple(Exit(**{**v, "widths": tuple(v["widths"])}) for v in value.get("exits", ())),
                Latency.from_dict(value["latency"]) if value.get("latency") else None,
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArchitectureError(f"this is not a graph ({error!r}); give the graph.json of a run") from None


def _some(names: list[str]) -> str:
    """The first names, and how many there are beside them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
