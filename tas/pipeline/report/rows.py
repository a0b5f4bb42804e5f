"""The layers of a model as rows of a picture: how many channels each one makes, under every architecture."""

from __future__ import annotations

from dataclasses import dataclass

from tas.architecture import Architecture
from tas.cost import Count, Gate
from tas.graph import Graph, Layer


@dataclass(frozen=True)
class LayerRow:
    """A layer that computes channels.

    Attributes:
        name: module path.
        count: channels as a function of the widths.
        full: channels in the full model.
        gate: (depth, position) when it lies in a block that can be dropped.
        graph: that the layer is of.
    """

    name: str
    count: Count
    full: int
    gate: Gate | None
    graph: Graph

    @property
    def widths(self) -> tuple[str, ...]:
        """Names of the widths it makes; none where its size is never chosen."""
        return tuple(name for name, _ in self.count.widths)

    def kept(self, architecture: Architecture) -> int:
        """Channels under `architecture`; 0 in a dropped block."""
        return 0 if self.is_dropped(architecture) else self.count.of(self.graph.sizes(architecture))

    def is_dropped(self, architecture: Architecture) -> bool:
        """Whether `architecture` drops its block."""
        return self.gate is not None and architecture.depths[self.gate[0]] <= self.gate[1]


def layer_rows(graph: Graph) -> list[LayerRow]:
    """Every convolution and linear layer, in order of execution; the projections of attention count as linear."""
    found = ((layer, made_channels(layer)) for layer in graph.layers)
    full = graph.sizes(graph.full)
    return [LayerRow(layer.name, count, count.of(full), layer.gate, graph) for layer, count in found if count]


def made_channels(layer: Layer) -> Count | None:
    """How many channels a layer computes; None for norms and other layers that only pass them on."""
    weights = [parameter for parameter in layer.parameters if len(parameter.shape) > 1 and not parameter.is_buffer]
    if not layer.products or not weights:
        return None
    return weights[0].counts[1 if layer.kind == "transposed" else 0]  # torch transposes these weights too
