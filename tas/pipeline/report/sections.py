"""The texts and tables of the page, as HTML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tas.architecture import Architecture
from tas.budget import bounds_text
from tas.graph import Graph
from tas.page import plain, table
from tas.pipeline.report.files import RunFiles
from tas.pipeline.report.rows import layer_rows
from tas.profile import RUNTIMES, compared, latency_change, latency_setting, quality_words, share
from tas.run import CONFIG

OPEN_ROWS = 40  # a longer table is folded


def result_sentence(run: RunFiles) -> str:
    """What came out, or how far the run is, in one sentence of plain text."""
    what = " on ".join(str(run.settings[key]) for key in ("model", "data") if run.settings.get(key))
    if run.summary is None:
        return f"{what or run.label}: {run.state.partition(':')[0]}"
    full, pruned = run.summary["full"], run.summary["pruned"]
    sentence = f"{what or run.label}: {100 * pruned['macs'] / full['macs']:.1f} % of the multiply-adds"
    sentence += f" and {100 * pruned['params'] / full['params']:.1f} % of the parameters"
    if "latency" in run.budget and "latency_ms" in full.keys() & pruned.keys():
        change, *_ = latency_change(full, pruned).partition(":")
        sentence += f", {change} in latency" if change == "no gain" else f", {change} of the latency"
    if full["accuracy"] is not None and pruned["accuracy"] is not None:
        name, pattern, _ = quality_words(full.get("metric", ""))
        sentence += f", {name} {pattern.format(pruned['accuracy'])} instead of {pattern.format(full['accuracy'])}"
    return sentence


def head(run: RunFiles) -> str:
    """The result, the budget, and a plain word where a run is not finished."""
    lines = [f"<h1>{plain(result_sentence(run))}</h1>"]
    if run.summary is None:
        text = f"This run is {run.state.replace(':', '; below is what there is so far:', 1)}."
        lines.append(f'<p class="unfinished">{plain(text)}</p>')
    if run.budget:
        lines.append(f'<p class="quiet">Budget: {plain(bounds_text(run.budget))}{run.held}.</p>')
    return "\n".join(lines)


def quantities(run: RunFiles) -> list[tuple[str, str, str, str]]:
    """Rows (what, full, pruned, change) of everything that was measured; empty for an unfinished run."""
    if run.summary is None:
        return []
    full, pruned = run.summary["full"], run.summary["pruned"]
    metric, *_ = quality_words(full.get("metric", ""))
    predicted = ""
    if run.graph and (latency := run.graph.latency):
        runtime = "" if latency.runtime == "pytorch" else f", {RUNTIMES[latency.runtime]}"
        predicted = f"{runtime}, batch of {latency.batch}"
    labels = {
        "accuracy": metric, "macs": "MACs per sample", "params": "parameters",
        "predicted_latency_ms": f"predicted latency{predicted}",
    }  # fmt: skip
    rows = [
        (labels[name], before, after, change)
        for name, (before, after), change in compared(full, pruned)
        if name in labels
    ]
    for before, after in zip(*(profile.get("timings") or [profile] for profile in (full, pruned)), strict=True):
        batch = f", batch of {before.get('batch_size', 1)}"
        for name, label in {"latency_ms": "latency", "latency_spread_ms": "spread of latency"}.items():
            if name in before.keys() & after.keys():
                change = latency_change(before, after) if name == "latency_ms" else ""
                rows.append((label + batch, f"{before[name]:.3f} ms", f"{after[name]:.3f} ms", change))
    if run.weights_bytes:
        before, after = run.weights_bytes
        rows.append(("file of the weights", f"{before / 1e6:,.2f} MB", f"{after / 1e6:,.2f} MB", share(before, after)))
    return rows


def result_of(run: RunFiles) -> str:
    """Full and pruned model side by side."""
    rows = quantities(run)
    setting = latency_setting(run.summary["full"]) if run.summary else ""
    text = plain(f"Latency: median of one pass, spread: the distance between its quartiles; {setting}.")
    note = f'<p class="quiet">{text}</p>' if setting else ""
    return table(("", "full", "pruned", "pruned / full"), rows) + note if rows else ""


def results_of(runs: Sequence[RunFiles]) -> str:
    """A row per quantity, two columns per run; runs that are not finished say so."""
    found = [{name: cells for name, *cells in quantities(run)} for run in runs]
    names = list(dict.fromkeys(name for rows in found for name in rows))
    lines = [("budget", *(bounds_text(run.budget) or "-" for run in runs)),
             ("state", *(run.state for run in runs))]  # fmt: skip
    for name in names:
        cells = ("{} → {} ({})".format(*rows[name]) if name in rows else "-" for rows in found)
        lines.append((name, *(cell.removesuffix(" ()") for cell in cells)))
    settings = [latency_setting(run.summary["full"]) if run.summary else "" for run in runs]
    if any(settings):
        lines.append(("latency measured with", *(setting or "-" for setting in settings)))
    return table(("full → pruned", *(run.label for run in runs)), lines, words=1 + len(runs))


def sizes_of(runs: Sequence[RunFiles]) -> str:
    """Every width and depth before and after, with a bar per run and the layers that share a width."""
    known = [(run, run.graph, run.latest) for run in runs if run.graph and run.latest]
    if not known:
        return ""
    names = list(dict.fromkeys(name for _, graph, _ in known for name in _sizes(graph, graph.full)))
    columns = [(_sizes(graph, graph.full), _sizes(graph, chosen)) for _, graph, chosen in known]
    makers: dict[str, dict[str, None]] = {}
    for row in (row for _, graph, _ in known for row in layer_rows(graph)):
        for width in row.widths:
            makers.setdefault(width, {})[row.name] = None
    titles = [run.label if len(runs) > 1 else "kept" for run, *_ in known]
    head_row = '<th class="word">width or depth</th><th class="word">made by</th>' + "".join(
        f'<th class="number">full</th><th class="number">{plain(title)}</th><th></th>' for title in titles
    )
    lines = [f"<tr>{head_row}</tr>"]
    for name in names:
        cells = "".join(_size_cells(full.get(name), kept.get(name)) for full, kept in columns)
        made = ", ".join(makers.get(name[0], ())) if name[1] == "channels" else "blocks"
        lines.append(f'<tr><td class="word">{plain(name[0])}</td><td class="word quiet">{plain(made)}</td>{cells}</tr>')
    return fold(f"{len(names)} widths and depths", "".join(lines), len(names))


def _sizes(graph: Graph, architecture: Architecture) -> dict[tuple[str, str], int]:
    widths = {(width.name, "channels"): architecture.widths[width.name] for width in graph.widths}
    return {**widths, **{(depth.name, "blocks"): architecture.depths[depth.name] for depth in graph.depths}}


def _size_cells(full: int | None, kept: int | None) -> str:
    if full is None or kept is None:
        return "<td>-</td><td>-</td><td></td>"
    bar = f'<div><div style="width:{100 * kept / full:.0f}%"></div></div>'
    return f'<td class="number">{full}</td><td class="number">{kept}</td><td class="bar">{bar}</td>'


def fold(title: str, rows: str, count: int) -> str:
    """A table of finished rows that opens on a click if it is long."""
    state = " open" if count <= OPEN_ROWS else ""
    inside = f'<div class="scroll"><table>{rows}</table></div>'
    return f"<details{state}><summary>{plain(title)}</summary>{inside}</details>"


def dropped_of(run: RunFiles) -> str:
    """The blocks that are not there any more."""
    dropped = run.graph.skipped(run.latest) if run.graph and run.latest else ()
    text = f"Dropped blocks: {', '.join(dropped)}. Widths inside them are not used."
    return f"<p>{plain(text)}</p>" if dropped else ""


def frozen_of(run: RunFiles) -> str:
    """What was left alone, under its reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for item in run.graph.frozen if run.graph else ():
        reasons.setdefault((item.reason, item.module or "-"), []).append(item.axis)
    lines = [table_row((reason, module, ", ".join(axes))) for (reason, module), axes in reasons.items()]
    first = "<tr>" + "".join(f'<th class="word">{name}</th>' for name in ("reason", "module", "axes")) + "</tr>"
    return (
        fold(f"{len(lines)} reasons" if len(lines) > 1 else "one reason", first + "".join(lines), len(lines))
        if lines
        else ""
    )


def table_row(cells: Sequence[str]) -> str:
    """A row of words."""
    return "<tr>" + "".join(f'<td class="word">{plain(cell)}</td>' for cell in cells) + "</tr>"


def origin_of(run: RunFiles) -> str:
    """Where a run comes from: command, options, seed, versions, times."""
    lines = []
    if "teacher" in run.settings and run.settings.get("model"):
        command = f"tas compress --config {shlex.quote(str(run.folder / CONFIG))} --output runs/again"
        lines.append(f"<p>The same again: <code>{plain(command)}</code></p>")
    facts = [] if run.start.get("seed") is None else [f"Seed {run.start['seed']}"]
    seconds = run.summary["seconds"] if run.summary else {}
    facts += [f"{name} {value:.0f} s" for name, value in seconds.items()]
    versions = run.start.get("versions", {})
    lines.append(f"<p>{plain('; '.join(facts))}.</p>" if facts else "")
    text = ", ".join(f"{name} {value}" for name, value in versions.items())
    lines.append(f"<p>Versions: {plain(text)}.</p>" if versions else "")
    if run.config:
        lines.append(f"<details><summary>config.yaml</summary><pre>{plain(run.config.rstrip())}</pre></details>")
    return "\n".join(line for line in lines if line)
