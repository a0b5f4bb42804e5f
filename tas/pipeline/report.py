"""Tell people what a run did, in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tas.architecture import Architecture
from tas.errors import RunError
from tas.graph import Graph
from tas.record import Record
from tas.run import CONFIG, GRAPH, RECORD, REPORT, read_summary, read_text
from tas.storage import write_text


def report(folder: str | Path) -> Path:
    """Write `report.md` of a finished run from the files in its folder, and return its path.

    Raises:
        RunError: the run is not finished or its files are damaged.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    parts = [_head(summary), result_table(summary)]
    if (folder / GRAPH).is_file() and (folder / "architecture.json").is_file():
        graph = Graph.from_json(read_text(folder / GRAPH))
        architecture = Architecture.from_json(read_text(folder / "architecture.json"))
        parts += [_sizes(graph, architecture), _frozen(graph)]
    parts += [_search_rows(Record(folder / RECORD)), _origin(folder, summary)]
    path = folder / REPORT
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def result_table(summary: dict[str, Any]) -> str:
    """Full and pruned model side by side, as a Markdown table."""
    full, pruned = summary["full"], summary["pruned"]
    rows = [("accuracy", "{:.2f} %", "difference"), ("macs", "{:,}", "share"), ("params", "{:,}", "share")]
    rows.append(("latency_ms", "{:.3f} ms", "share"))
    lines = ["| | full | pruned | pruned / full |", "|---|---:|---:|---:|"]
    for name, pattern, how in rows:
        before, after = full[name], pruned[name]
        if before is None or after is None:
            continue
        change = f"{after - before:+.2f} points" if how == "difference" else f"{100 * after / before:.1f} %"
        lines.append(f"| {name.partition('_')[0]} | {pattern.format(before)} | {pattern.format(after)} | {change} |")
    return "\n".join(lines)


def _head(summary: dict[str, Any]) -> str:
    full, pruned = summary["full"], summary["pruned"]
    budget = ", ".join(
        f"{value} of {name}" if "%" in str(value) else f"{value} {name}" for name, value in summary["budget"].items()
    )
    share = 100 * pruned["macs"] / full["macs"]
    accuracy = ""
    if full["accuracy"] is not None:
        accuracy = f" Accuracy {full['accuracy']:.2f} % before, {pruned['accuracy']:.2f} % after."
    return f"# Pruned to {share:.1f} % of the multiply-adds\n\nBudget: {budget}; held.{accuracy}"


def _sizes(graph: Graph, architecture: Architecture) -> str:
    lines = ["## Architecture", "", "| width | full | kept | |", "|---|---:|---:|---|"]
    for width in graph.widths:
        kept = architecture.widths[width.name]
        lines.append(f"| {width.name} | {width.size} | {kept} | {_bar(kept / width.size)} |")
    if graph.depths:
        lines += ["", "| depth | blocks | kept | |", "|---|---:|---:|---|"]
        for depth in graph.depths:
            kept, full = architecture.depths[depth.name], len(depth.blocks)
            lines.append(f"| {depth.name} | {full} | {kept} | {_bar(kept / full)} |")
    skipped = graph.skipped(architecture)
    if skipped:
        lines += ["", f"Dropped blocks: {', '.join(skipped)}. Widths inside them are not used."]
    return "\n".join(lines)


def _bar(share: float) -> str:
    return "█" * round(20 * share)


def _frozen(graph: Graph) -> str:
    if not graph.frozen:
        return ""
    lines = ["## Not searched", "", "| axis | reason |", "|---|---|"]
    return "\n".join(lines + [f"| {item.axis} | {item.reason} |" for item in graph.frozen])


def _search_rows(record: Record) -> str:
    rows = record.epochs("search")
    if not rows:
        return ""
    lines = [
        "## Search",
        "",
        "| epoch | loss | held-out loss | temperature | expected | most probable |",
        "|---:|---:|---:|---:|---|---|",
    ]
    step = max(1, len(rows) // 20)
    for row in rows[::step] + ([rows[-1]] if (len(rows) - 1) % step else []):
        costs = [
            ", ".join(f"{value:,} {name}" for name, value in row[key].items()) for key in ("expected", "most_probable")
        ]
        numbers = f"{row['loss']:.3f} | {row['held_out_loss']:.3f} | {row['temperature']:.2f}"
        lines.append(f"| {row['epoch'] + 1} | {numbers} | {costs[0]} | {costs[1]} |")
    return "\n".join(lines)


def _origin(folder: Path, summary: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items())
    versions = ", ".join(f"{name} {value}" for name, value in summary.get("versions", {}).items())
    lines = ["## Origin", "", f"Seed {summary['seed']}; {seconds}.", "", f"Versions: {versions}."]
    try:
        lines += ["", "```yaml", (folder / CONFIG).read_text(encoding="utf-8").rstrip(), "```"]
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunError(f"{folder / CONFIG} cannot be read ({error.strerror}); check its permissions") from error
    return "\n".join(lines)
