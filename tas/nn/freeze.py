"""Take a width or a depth out of a graph: what it stood for stays as it is."""

from __future__ import annotations

from dataclasses import replace

from tas.cost import Side
from tas.graph import Depth, Frozen, Graph, Layer, Layout, Run
from tas.nn.rules import KINDS
from tas.streams import renamed


def without(graph: Graph, name: str, reason: str) -> Graph:
    """The graph with one width, depth or exit frozen, if it has it; an exit stays only with every width it may have."""
    for item in graph.exits:
        if item.name == name:
            for width in dict.fromkeys(width for width in item.widths if width is not None):
                graph = without(graph, width, reason)
            return graph
    if any(depth.name == name for depth in graph.depths):
        depths: tuple[Depth, ...] = tuple(depth for depth in graph.depths if depth.name != name)
        layers = tuple(
            replace(item, gate=None if item.gate and item.gate[0] == name else item.gate) for item in graph.layers
        )
        frozen = (*graph.frozen, Frozen(name, reason, name))
        shortcuts = tuple(
            replace(item, gate=None if item.gate and item.gate[0] == name else item.gate) for item in graph.shortcuts
        )
        graph = replace(graph, depths=depths, layers=layers, frozen=frozen, shortcuts=shortcuts)
        for item in [item for item in graph.exits if item.depth == name]:
            graph = _renamed(graph, item.name, item.widths[-1], item.channels)
        return graph
    size = graph.full.widths.get(name)
    if size is None:  # it went with another
        return graph
    axes = [
        f"{parameter.name}[{dim}]"
        for layer in graph.layers
        for short, dim in KINDS[layer.kind].makes.items()
        for parameter in layer.parameters
        if parameter.short == short and any(run.width == name for run in parameter.layouts[dim] or ())
    ]
    graph = replace(graph, frozen=(*graph.frozen, *(Frozen(axis, reason, name) for axis in axes)))
    graph = _renamed(graph, name, None, size)
    for item in [item for item in graph.exits if not any(item.widths)]:
        graph = _renamed(graph, item.name, None, item.channels)
    return graph


def _renamed(graph: Graph, name: str, other: str | None, size: int) -> Graph:
    """The graph without one width or exit, in whose place another stands, or for None channels that are never cut."""
    side = size if other is None else other
    attributes = tuple(replace(item, count=renamed(item.count, name, side)) for item in graph.attributes)
    shortcuts = [
        replace(
            item,
            reads=other if item.reads == name else item.reads,
            makes=other if item.makes == name else item.makes,
        )
        for item in graph.shortcuts
    ]
    exits = [
        replace(item, widths=tuple(other if width == name else width for width in item.widths)) for item in graph.exits
    ]
    return replace(
        graph,
        widths=tuple(width for width in graph.widths if width.name != name),
        layers=tuple(_with_renamed(layer, name, other, side) for layer in graph.layers),
        attributes=tuple(item for item in attributes if item.count.widths),
        shortcuts=tuple(item for item in shortcuts if item.reads != item.makes),
        exits=tuple(item for item in exits if item.name != name),
    )


def without_size(graph: Graph, name: str, size: int) -> Graph:
    """The graph whose width `name` may not have this size."""
    widths = (
        replace(width, excluded=(*width.excluded, size)) if width.name == name else width for width in graph.widths
    )
    return replace(graph, widths=tuple(widths))


def _with_renamed(layer: Layer, name: str, other: str | None, side: Side) -> Layer:
    def layout(runs: Layout | None) -> Layout | None:
        if not any(run.width == name for run in runs or ()):
            return runs
        left = tuple(_run(run, other) if run.width == name else run for run in runs or ())
        return left if any(run.width is not None for run in left) else None

    parameters = tuple(replace(p, layouts=tuple(map(layout, p.layouts))) for p in layer.parameters)
    products = tuple(
        (times, tuple(renamed(factor, name, side) for factor in factors)) for times, factors in layer.products
    )
    makes = dict(KINDS[layer.kind].makes) or {"weight": 0, "running_mean": 0}
    changed = any(
        new.layouts[makes[short]] != old.layouts[makes[short]]
        for new, old in zip(parameters, layer.parameters, strict=True)
        if (short := new.short) in makes
    )
    return replace(
        layer, parameters=parameters, products=products, mixed_by=None if changed else layer.mixed_by,
        channels=layout(layer.channels),
    )  # fmt: skip


def _run(run: Run, other: str | None) -> Run:
    return Run(None, 0, run.count * run.repeat) if other is None else replace(run, width=other)
