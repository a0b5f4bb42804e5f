"""What a command found, on stdout: tables for the terminal, or JSON for machines. Nothing else goes there."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tas.architecture import Architecture
from tas.budget import QUANTITIES, cost_text
from tas.graph import Graph, Width
from tas.profile import compared, latency_change, latency_setting, plus_minus, quality_words, share
from tas.space import SearchSpace, outputs_per_channel

_shown: list[TextIO] = []  # stdout, while it is kept for results


@contextmanager
def results_alone() -> Iterator[None]:
    """In the block stdout is for results: what else is printed, by the user's code, goes to stderr."""
    _shown.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _shown.pop()


@contextmanager
def results() -> Iterator[None]:
    """In the block, what is printed is a result."""
    with redirect_stdout(_shown[-1] if _shown else sys.stdout):
        yield


@results()
def say(text: str) -> None:
    """A line of text."""
    print(text)


@results()
def say_json(value: Any) -> None:
    """A line of JSON."""
    print(json.dumps(value))


@results()
def print_profiles(profiles: Mapping[str, Mapping[str, Any]]) -> None:
    """One column per model, one row per quantity."""
    names = list(profiles)
    table = Table("", *names, *(["pruned / full"] if len(names) == 2 else []))
    for column in table.columns[1:]:
        column.justify = "right"
    metric, *_ = quality_words(next(iter(profiles.values())).get("metric", ""))
    labels = {"accuracy": metric, "predicted_latency_ms": "predicted latency"}
    for name, cells, change in compared(*profiles.values()):
        if name != "latency_ms":  # below, of every batch size
            table.add_row(labels.get(name, name), *cells, *([change] if change else []))
    for timings in zip(*(profile.get("timings") or [profile] for profile in profiles.values()), strict=True):
        _add_latency(table, timings)
    Console().print(table)
    if setting := latency_setting(profiles[names[0]]):
        print(f"latency: {setting}; median of one pass, and the distance between its quartiles")


def _add_latency(table: Table, timings: Sequence[Mapping[str, Any]]) -> None:
    cells = [f"{timing['latency_ms']:.3f} ms" for timing in timings]
    spreads = [f"{timing.get('latency_spread_ms', 0):.3f} ms" for timing in timings]
    change = [latency_change(*timings)] if len(timings) == 2 else []
    table.add_row(f"latency, batch of {timings[0].get('batch_size', 1)}", *cells, *change)
    table.add_row("  spread", *spreads)


@results()
def print_runs(summaries: Mapping[str, Mapping[str, Any] | None], *, as_json: bool) -> None:
    """Full and pruned model of every run, under its folder where there are several; as JSON for machines.

    Args:
        summaries: by folder; None of a run that is not finished.
        as_json: one line: the summary of one run, or the summaries by folder.
    """
    if as_json:
        print(json.dumps(summaries if len(summaries) > 1 else next(iter(summaries.values()))))
        return
    for folder, summary in summaries.items():
        if len(summaries) > 1 or summary is None:
            print(folder if summary else f"{folder} has no results: it is not finished, or a training alone")
        if summary:
            print_profiles({name: summary[name] for name in ("full", "pruned")})


@results()
def print_export(found: Mapping[str, Any]) -> None:
    """An exported file beside the model in PyTorch."""
    table = Table("", "PyTorch", found["format"])
    for column in table.columns[1:]:
        column.justify = "right"
    if found["accuracy"] is not None:
        name, value, _ = quality_words(found["metric"])
        table.add_row(name, *(value.format(found[key]) for key in ("model_accuracy", "accuracy")))
    table.add_row("size", *(f"{found[name] / 1e6:.3f} MB" for name in ("model_bytes", "file_bytes")))
    table.add_row("latency", *(f"{found[name]:.3f} ms" for name in ("model_latency_ms", "latency_ms")))
    table.add_row("largest difference", "", f"{found['difference']:.1e}")
    Console().print(table)
    print(f"file: {found['path']}")


@results()
def print_comparison(found: Mapping[str, Any]) -> None:
    """Accuracy and cost of every row of a comparison, mean ± standard deviation over the seeds."""
    table, (head, *rows) = Table(box=box.SIMPLE, pad_edge=False), comparison_rows(found)
    for place, name in enumerate(head):
        table.add_column(name, overflow="fold", justify="left" if place < len(head) - 3 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def comparison_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Of a comparison, the names of the columns and the cells of every row; the budget where there are several."""
    full, names = found["full"], ["method", "transfer"]
    if len({row["budget"] for row in found["rows"]}) > 1:
        names.insert(0, "budget")
    rows = [[*names, found["metric"] or "accuracy %", "macs", "search s"]]
    if full is not None:
        rows.append([*[""] * (len(names) - 2), "full model", "", f"{full['accuracy']:.2f}", f"{full['macs']:,}", ""])
    for row in found["rows"]:
        shown = (("accuracy", 2), ("macs", 0), ("search_seconds", 1))
        rows.append([*(row[name] for name in names), *(plus_minus(row[name], digits) for name, digits in shown)])
    return rows


@results()
def print_graph(graph: Graph, space: SearchSpace, chosen: Architecture | None = None) -> None:
    """Every width and depth with its share of the multiply-adds, what is left alone and why, and the reachable costs.

    Args:
        graph: from `tas.trace`.
        space: whose candidates are shown.
        chosen: an architecture to show beside them.
    """
    console, kept = Console(highlight=False), ["kept"] if chosen else []
    if graph.widths:
        table = _table("width", "size", "candidates", *kept, "layers", "macs")
        for width in graph.widths:
            size = [str(chosen.widths[width.name])] if chosen else []
            sizes = _size(graph, width), _few(space.widths[width.name])
            macs = _share(graph, width.layers)
            table.add_row(Text(width.name), *sizes, *size, str(len(width.layers)), macs)
        console.print(table)
    if graph.depths:
        table = _table("depth", "blocks", "candidates", *kept, "macs")
        for depth in graph.depths:
            size = [str(chosen.depths[depth.name])] if chosen else []
            macs = _share(graph, graph.layers_of(depth.name))
            table.add_row(Text(depth.name), str(len(depth.blocks)), _few(space.depths[depth.name]), *size, macs)
        console.print(table)
    _print_frozen(graph, console.width)
    print(f"\nfull model: {graph.macs():,} macs, {graph.params():,} params")
    for label, architecture in (("smallest", space.smallest), ("chosen", chosen)):
        if architecture is not None:
            print(f"{label}: {costs_text(graph, architecture)}")
    print(f"open: {100 * graph.open_share:.1f} % of the macs lie in layers that can be narrowed or dropped")
    if message := why_nothing_is_open(graph, space):
        print(message)


def why_nothing_is_open(graph: Graph, space: SearchSpace) -> str | None:
    """What to do where nothing can be made smaller; None where something can."""
    if space.num_architectures > 1:
        return None
    if graph.widths or graph.depths:
        return (
            "this space offers nothing smaller than the full model; allow more with choose, ratios, round_to, minimum "
            "or candidates of the space"
        )
    if not graph.frozen:
        return "nothing can be made smaller: the model has no convolution, no linear layer and no residual blocks"
    if any(item.reason.startswith("kept, ") for item in graph.frozen):
        return "nothing can be made smaller, for the reasons given; keep fewer modules"
    return (
        "nothing can be made smaller, for the reasons given; change the modules they name, or take a model where one "
        "convolution or linear layer reads another"
    )


def summarize(graph: Graph, space: SearchSpace) -> dict[str, Any]:
    """Full and smallest reachable cost, the open share and how much was found, for machines."""
    return {
        "macs": graph.macs(),
        "params": graph.params(),
        "smallest": {"macs": graph.macs(space.smallest), "params": graph.params(space.smallest)},
        "open_share": graph.open_share,
        "widths": len(graph.widths),
        "depths": len(graph.depths),
        "frozen": len(graph.frozen),
    }


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in columns:  # a long name goes on in the next line: cut off, it could not be looked up
        is_text = name in ("width", "depth", "candidates")
        table.add_column(name, overflow="fold", justify="left" if is_text else "right")
    return table


def _size(graph: Graph, width: Width) -> str:
    """Channels, times the outputs of a layer that each stands for (a head, a channel of every group)."""
    outputs = outputs_per_channel(graph, width.name)
    return f"{width.size}" if outputs == 1 else f"{width.size} x {outputs}"


def _few(sizes: Sequence[int]) -> str:
    """The candidates, or those that show by which steps they go."""
    return " ".join(map(str, sizes)) if len(sizes) < 5 else f"{sizes[0]} {sizes[1]} … {sizes[-1]}"


def _share(graph: Graph, layers: Iterable[str]) -> str:
    return share(graph.macs(), sum(graph.layer_macs[name] for name in layers))


def costs_text(graph: Graph, architecture: Architecture) -> str:
    """What an architecture costs, and which share that is of the full model."""
    names = [name for name in QUANTITIES if name != "latency" or graph.latency is not None]
    costs = {name: (graph.cost(name).exact(architecture), graph.full_cost(name)) for name in names}
    return ", ".join(f"{cost_text(cost, name)} ({share(full, cost)})" for name, (cost, full) in costs.items())


def _print_frozen(graph: Graph, columns: int) -> None:
    """Every frozen axis under its reason, behind the module in which the reason lies."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for item in graph.frozen:
        reasons.setdefault(item.reason, {}).setdefault(item.module, []).append(item.axis)
    wrap = partial(textwrap.fill, width=columns, break_long_words=False, break_on_hyphens=False)
    for reason, modules in reasons.items():
        print(wrap(f"left alone: {reason}"))
        for module, axes in modules.items():
            print(wrap(f"{module or '-'}: {', '.join(axes)}", initial_indent="  ", subsequent_indent="      "))
