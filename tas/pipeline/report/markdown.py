"""What a run did, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from tas.architecture import Architecture
from tas.budget import bounds_text, cost_text
from tas.graph import Graph
from tas.pipeline.report.files import RunFiles
from tas.profile import compared, quality_words
from tas.record import Record


def to_markdown(run: RunFiles) -> str:
    """The report of a run as text."""
    parts = [_head(run), result_table(run.summary) if run.summary else ""]
    if run.graph and run.latest:
        parts += [_sizes(run.graph, run.latest), _frozen(run.graph)]
    parts += [_search_rows(run.record), _round_rows(run), _origin(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def result_table(summary: Mapping[str, Any]) -> str:
    """Full and pruned model side by side, as a Markdown table."""
    full, pruned = summary["full"], summary["pruned"]
    metric, *_ = quality_words(full.get("metric", ""))
    labels = {"accuracy": metric, "predicted_latency_ms": "predicted latency", "latency_ms": "latency"}
    lines = ["| | full | pruned | pruned / full |", "|---|---:|---:|---:|"]
    for name, (before, after), change in compared(full, pruned):
        lines.append(f"| {labels.get(name, name)} | {before} | {after} | {change} |")
    return "\n".join(lines)


def _head(run: RunFiles) -> str:
    budget = bounds_text(run.budget) or "none"
    if run.summary is None:
        return f"# {run.state.partition(':')[0].capitalize()}\n\nSo far: {run.progress}. Budget: {budget}."
    full, pruned = run.summary["full"], run.summary["pruned"]
    share = 100 * pruned["macs"] / full["macs"]
    accuracy, (_, pattern, _) = "", quality_words(full.get("metric", ""))
    if full["accuracy"] is not None:
        values = [pattern.format(profile["accuracy"]) for profile in (full, pruned)]
        accuracy = f" {full.get('metric') or 'Accuracy'} {values[0]} before, {values[1]} after."
    return f"# Pruned to {share:.1f} % of the multiply-adds\n\nBudget: {budget}{run.held}.{accuracy}"


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
            ", ".join(cost_text(value, name) for name, value in row[key].items())
            for key in ("expected", "most_probable")
        ]
        numbers = f"{row['loss']:.3f} | {row['held_out_loss']:.3f} | {row['temperature']:.2f}"
        lines.append(f"| {row['epoch'] + 1} | {numbers} | {costs[0]} | {costs[1]} |")
    return "\n".join(lines)


def _round_rows(run: RunFiles) -> str:
    if not run.rounds:
        return ""
    lines = [
        "## Successive halving",
        "",
        "Architectures that took turns in training the weights they share; most went after the first round, then the "
        "worse half after every round. "
        "Losses are those on held-out images, of more images in later rounds.",
        "",
        "| round | steps | images | architectures | median loss | best loss | macs of the best | its blocks |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in run.rounds:
        blocks = ", ".join(f"{name} {kept}" for name, kept in row["architecture"]["depths"].items())
        losses = f"{median(row['losses']):.3f} | {row['loss']:.3f}"
        lines.append(
            f"| {row['round'] + 1} | {row['steps']} | {row['images']} | {len(row['losses'])} | {losses} | "
            f"{row['macs']:,} | {blocks} |"
        )
    return "\n".join(lines)


def _origin(run: RunFiles) -> str:
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in (run.summary or {}).get("seconds", {}).items())
    versions = ", ".join(f"{name} {value}" for name, value in run.start.get("versions", {}).items())
    seed = f"Seed {run.start.get('seed')}" + (f"; {seconds}." if seconds else ".")
    lines = ["## Origin", "", seed, "", f"Versions: {versions}."]
    return "\n".join(lines + (["", "```yaml", run.config.rstrip(), "```"] if run.config else []))
