"""What `trace` knows about a model, as plain values: widths, depths, layers with their cost, and what stays frozen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tas.architecture import Architecture
from tas.cost import Cost, Count, Gate, Term
from tas.errors import ArchitectureError


@dataclass(frozen=True)
class Run:
    """A stretch of an axis: `count` successive channels of a width, each filling `repeat` positions in a row.

    Attributes:
        width: name of the width; None for positions that are never cut.
        start: first channel of the stretch.
        count: channels in it.
        repeat: positions each channel fills (49 where 7x7 pixels were flattened).
    """

    width: str | None
    start: int
    count: int
    repeat: int = 1


Layout = tuple[Run, ...]


def count_of(layout: Layout) -> Count:
    """Size of an axis as a function of the widths.

    Every channel of a width occurs equally often in an axis (that is what makes it a width), so whole counts suffice.
    """
    constant = sum(run.count * run.repeat for run in layout if run.width is None)
    positions: Counter = Counter()
    channels: Counter = Counter()
    for run in layout:
        if run.width is not None:
            positions[run.width] += run.count * run.repeat
            channels[run.width] = max(channels[run.width], run.start + run.count)
    return Count(constant, tuple((width, total // channels[width]) for width, total in positions.items()))


def positions_of(layout: Layout, sizes: Mapping[str, int]) -> np.ndarray:
    """Positions of an axis that stay when each width keeps its first `sizes[width]` channels; ascending."""
    kept = []
    for run in layout:
        channels = np.arange(run.start, run.start + run.count)
        keep = np.ones(run.count, dtype=bool) if run.width is None else channels < sizes[run.width]
        kept.append(np.repeat(keep, run.repeat))
    return np.flatnonzero(np.concatenate(kept)) if kept else np.zeros(0, dtype=int)


class Whole(NamedTuple):
    """An axis that one width fills alone, all its channels in order.

    Attributes:
        width: its name.
        copies: how often all channels stand there in a row; once per group of a convolution.
        repeat: positions each channel fills; the dimension of a head in attention.
    """

    width: str
    copies: int
    repeat: int


def whole_width(layout: Layout | None) -> Whole | None:
    """What fills an axis if it is nothing but copies of one whole width; None for every other axis."""
    if not layout or any(run != layout[0] for run in layout):
        return None
    first = layout[0]
    return Whole(first.width, len(layout), first.repeat) if first.width is not None and first.start == 0 else None


def channels_of(layout: Layout, width: str) -> np.ndarray:
    """Channel of `width` at each position of an axis; -1 where another width, or none, stands."""
    parts = [
        np.repeat(
            np.arange(run.start, run.start + run.count) if run.width == width else np.full(run.count, -1), run.repeat
        )
        for run in layout
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Parameter:
    """One parameter or buffer of a layer and what stands on its axes.

    Attributes:
        name: as in `state_dict`.
        shape: in the full model.
        layouts: one per dimension; None where the dimension is never cut.
        is_buffer: whether it is left out of the parameter count.
    """

    name: str
    shape: tuple[int, ...]
    layouts: tuple[Layout | None, ...]
    is_buffer: bool = False

    @property
    def counts(self) -> tuple[Count, ...]:
        """Size of every dimension as a function of the widths."""
        return tuple(
            Count(size) if layout is None else count_of(layout)
            for size, layout in zip(self.shape, self.layouts, strict=True)
        )


@dataclass(frozen=True)
class Layer:
    """A module with parameters.

    Attributes:
        name: module path.
        kind: which rule knows it, such as `convolution`, `linear`, `batch_norm`; `other` for a module that is no layer
            but has parameters of its own, or multiplies activations with each other.
        parameters: its parameters and buffers.
        products: multiply-adds per sample, each a coefficient times axis sizes; empty for norms.
        gate: (depth, position) when it lies in a block that can be dropped.
        mixed_by: the layer behind which the supernet mixes the candidates made here: itself, the batch norm that alone
            reads it, or None where nothing is mixed.
        channel_dim: dimension of its input that holds the channels; used by norms over channels.
    """

    name: str
    kind: str
    parameters: tuple[Parameter, ...]
    products: tuple[tuple[int, tuple[Count, ...]], ...] = ()
    gate: Gate | None = None
    mixed_by: str | None = None
    channel_dim: int = 1


@dataclass(frozen=True)
class Attribute:
    """A whole number that a module keeps beside its parameters and that follows the widths, such as `num_heads`.

    Attributes:
        module: its path.
        name: of the attribute.
        count: its value as a function of the widths.
        place: of the number, where the attribute is a list or tuple.
    """

    module: str
    name: str
    count: Count
    place: int | None = None


@dataclass(frozen=True)
class Width:
    """An ordered list of channels that occur in the same axes; the thing whose size is chosen.

    Attributes:
        name: path of the first layer that makes these channels.
        size: channels in the full model.
        layers: paths of all layers with an axis in it.
    """

    name: str
    size: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Depth:
    """A run of blocks of which a prefix is kept; the first block always stays.

    Attributes:
        name: path of the container; of the first block that can be dropped where a container holds several runs.
        blocks: module paths in order.
    """

    name: str
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Frozen:
    """An axis that is not searched.

    Attributes:
        axis: `layer1.0.conv1.weight[0]`.
        reason: why, in words.
        module: path of the module in which the reason lies.
    """

    axis: str
    reason: str
    module: str


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
    """

    widths: tuple[Width, ...]
    depths: tuple[Depth, ...]
    layers: tuple[Layer, ...]
    frozen: tuple[Frozen, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    attributes: tuple[Attribute, ...] = ()

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

    @cached_property
    def _costs(self) -> dict[str, Cost]:
        macs = [Term(times, factors, layer.gate) for layer in self.layers for times, factors in layer.products]
        params = [
            Term(1, parameter.counts, layer.gate)
            for layer in self.layers
            for parameter in layer.parameters
            if not parameter.is_buffer
        ]
        return {"macs": Cost(tuple(macs)), "params": Cost(tuple(params))}

    @cached_property
    def layer_macs(self) -> dict[str, int]:
        """Multiply-adds per sample of every layer of the full model, by layer name."""
        return {
            layer.name: sum(Term(times, factors).of(self.full) for times, factors in layer.products)
            for layer in self.layers
        }

    @property
    def open_share(self) -> float:
        """Share of the full model's multiply-adds that some choice makes smaller, in [0, 1]; 0 where there are none.

        That is, in layers that a width narrows or that lie in a block a depth can drop.
        """
        is_open = {
            layer.name: layer.gate is not None or any(count.widths for _, counts in layer.products for count in counts)
            for layer in self.layers
        }
        return sum(macs for name, macs in self.layer_macs.items() if is_open[name]) / max(1, self.macs())

    def cost(self, quantity: str) -> Cost:
        """The polynomial of `macs` or `params`."""
        return self._costs[quantity]

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
            for name, size in given.items():
                if not 1 <= size <= full[name]:
                    raise ArchitectureError(f"{what} {name!r} keeps {size}; the model has 1 to {full[name]}")
        return architecture

    def skipped(self, architecture: Architecture) -> tuple[str, ...]:
        """Paths of the blocks that `architecture` drops."""
        return tuple(block for depth in self.depths for block in depth.blocks[architecture.depths[depth.name] :])

    def to_dict(self) -> dict[str, Any]:
        """The graph in plain lists and mappings, for JSON."""
        return {"format": 2, **asdict(self)}

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
            if value.pop("format") > 2:  # 1 had no attributes and no norms over channels
                raise ArchitectureError("this graph was written by a newer tas; upgrade, or trace the model again")
            return cls(
                tuple(Width(v["name"], v["size"], tuple(v["layers"])) for v in value["widths"]),
                tuple(Depth(v["name"], tuple(v["blocks"])) for v in value["depths"]),
                tuple(_layer(v) for v in value["layers"]),
                tuple(Frozen(**v) for v in value["frozen"]),
                tuple(tuple(shape) for shape in value["input_shapes"]),
                tuple(
                    Attribute(v["module"], v["name"], _count(v["count"]), v["place"])
                    for v in value.get("attributes", ())
                ),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArchitectureError(f"this is not a graph ({error!r}); give the graph.json of a run") from None


def _count(value: dict[str, Any]) -> Count:
    return Count(value["constant"], tuple((width, times) for width, times in value["widths"]))


def _layer(value: dict[str, Any]) -> Layer:
    parameters = tuple(
        Parameter(
            item["name"],
            tuple(item["shape"]),
            tuple(None if layout is None else tuple(Run(**run) for run in layout) for layout in item["layouts"]),
            item["is_buffer"],
        )
        for item in value["parameters"]
    )
    products = tuple((times, tuple(_count(factor) for factor in factors)) for times, factors in value["products"])
    gate = value["gate"] and (value["gate"][0], value["gate"][1])
    return Layer(
        value["name"], value["kind"], parameters, products, gate, value["mixed_by"], value.get("channel_dim", 1)
    )  # fmt: skip
