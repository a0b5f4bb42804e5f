"""Tables for the terminal, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tas.architecture import Architecture
from tas.graph import Graph


def print_profiles(profiles: Mapping[str, Mapping[str, Any]]) -> None:
    """One column per model, one row per quantity."""
    names = list(profiles)
    table = Table("", *names, *(["pruned / full"] if len(names) == 2 else []))
    for column in table.columns[1:]:
        column.justify = "right"
    rows = (("accuracy", "accuracy", "{:.2f} %"), ("macs", "macs", "{:,}"), ("params", "params", "{:,}"))
    for label, key, pattern in (*rows, ("latency", "latency_ms", "{:.3f} ms")):
        values = [profiles[name][key] for name in names]
        if any(value is None for value in values):
            continue
        cells = [pattern.format(value) for value in values]
        if len(values) == 2:
            difference = f"{values[1] - values[0]:+.2f} points"
            cells.append(difference if key == "accuracy" else f"{100 * values[1] / values[0]:.1f} %")
        table.add_row(label, *cells)
    Console().print(table)


def print_graph(graph: Graph, smallest: Architecture, chosen: Architecture | None = None) -> None:
    """Every width and depth with its share of the multiply-adds, what is frozen and why, and the reachable costs."""
    console, full = Console(), graph.macs()
    columns = ["width", "channels", *(["kept"] if chosen else []), "layers", "share of macs"]
    table = Table(*columns)
    for width in graph.widths:
        members = [layer for layer in graph.layers if layer.name in set(width.layers)]
        share = (
            sum(times * _product(factors, graph.full) for layer in members for times, factors in layer.products) / full
        )
        kept = [str(chosen.widths[width.name])] if chosen else []
        table.add_row(width.name, str(width.size), *kept, str(len(width.layers)), f"{100 * share:.1f} %")
    console.print(table if graph.widths else "no width can be changed")
    if graph.depths:
        table = Table("depth", "blocks", *(["kept"] if chosen else []))
        for depth in graph.depths:
            table.add_row(depth.name, str(len(depth.blocks)), *([str(chosen.depths[depth.name])] if chosen else []))
        console.print(table)
    if graph.frozen:
        table = Table("not searched", "reason", "module")
        for item in graph.frozen:
            table.add_row(item.axis, item.reason, item.module)
        console.print(table)
    least = graph.macs(smallest)
    print(
        f"full model: {full:,} macs, {graph.params():,} params; smallest: {least:,} macs ({100 * least / full:.1f} %)"
    )
    if chosen:
        macs, params = graph.macs(chosen), graph.params(chosen)
        print(f"chosen: {macs:,} macs ({100 * macs / full:.1f} %), {params:,} params")


def _product(factors: Any, architecture: Architecture) -> int:
    value = 1
    for factor in factors:
        value *= factor.of(architecture.widths)
    return value
