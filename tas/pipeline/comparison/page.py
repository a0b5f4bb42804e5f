"""`compare.html`: accuracy over multiply-adds (the paper's Fig. 2), transfers side by side (Fig. 3), and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tas.pipeline.comparison.table import HEAD, Found, headline, notes, origin, plus_minus, table_rows

# Okabe and Ito, 2008, without black and yellow, and three more: they differ for colour-blind people, on light and dark
COLORS = ("#1f7fc4", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a6dd1", "#9a8f2f", "#7f8c8d")
STYLES = ("filled", "hollow", "dotted")  # where there are more methods than colours


def html_page(found: Found) -> str:
    """The whole page; it needs nothing else, no network either."""
    from plotly.offline import get_plotlyjs

    charts, sections = _sections(found)
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison: {escape(found['title'])}</title>\n<style>{STYLE}</style>",
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<main>",
        f"<h1>Comparison: {escape(found['title'])}</h1>\n<p>{escape(headline(found))}.</p>",
        *sections,
        f"<h2>Every number</h2>\n{_table(HEAD, table_rows(found))}",
        _failed(found["failed"]),
        f"<h2>How to read it</h2>\n<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes(found))}</ul>",
        "<h2>Origin</h2>\n" + "".join(f"<p>{escape(line.replace('`', ''))}</p>" for line in origin(found)),
        f"</main>\n<script>const charts = {_script_json(charts)};{SCRIPT}</script>",
        "</body>\n</html>\n",
    ])  # fmt: skip


def _sections(found: Found) -> tuple[dict[str, Any], list[str]]:
    """Charts by the name of their place, and the places under their headings."""
    rows = found["rows"]
    if not rows:
        return {}, ["<p>Nothing has been measured.</p>"]
    budgets, transfers = (list(dict.fromkeys(row[name] for row in rows)) for name in ("budget", "transfer"))
    clouds = {f"scatter{index}": scatter(found, transfer) for index, transfer in enumerate(transfers)}
    groups = {f"bars{index}": bars(found, budget) for index, budget in enumerate(budgets)}
    full, line = found["full"], ""
    if full is not None:
        line = f" The dotted line is the full model: {full['accuracy']:.2f} % with {full['macs'] / 1e6:.1f} million."
    low = groups["bars0"]["layout"]["yaxis"]["range"][0]
    return clouds | groups, [
        "<h2>Accuracy over multiply-adds</h2>",
        f'<p class="note">Large marks are means over the seeds with their standard deviation, small ones the seeds.'
        f"{line}</p>",
        _legend(found), _places(clouds, [f"transfer {name}" for name in transfers]),
        "<h2>Knowledge transfer</h2>",
        f'<p class="note">Means and standard deviations over the seeds. The axes start at {low:g} %, not at 0.</p>',
        _legend(found), _places(groups, [f"budget {name}" for name in budgets]),
    ]  # fmt: skip


def _places(charts: Mapping[str, Any], titles: Sequence[str]) -> str:
    places = [
        f'<figure><figcaption>{escape(title)}</figcaption><div id="{name}" class="chart"></div></figure>'
        for name, title in zip(charts, titles, strict=True)
    ]
    return f'<div class="charts">{"".join(places)}</div>'


def _legend(found: Found) -> str:
    """Text that breaks anywhere, where a chart's own legend would take its room on a narrow screen."""
    items = []
    for label in found["config"]["methods"]:
        color, style = _look(found, label)
        items.append(f'<li><i class="{style}" style="color:{color}"></i>{escape(label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _look(found: Found, label: str) -> tuple[str, str]:
    """Colour and style of a method, the same in all charts."""
    index = list(found["config"]["methods"]).index(label)
    return COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]


def scatter(found: Found, transfer: str) -> dict[str, Any]:
    """Fig. 2, for one transfer: a line over the budgets per method, its seeds as small marks."""
    data, full = [], found["full"]
    for label in found["config"]["methods"]:
        rows = [row for row in found["rows"] if (row["method"], row["transfer"]) == (label, transfer)]
        color, style = _look(found, label)
        symbol = {"filled": "circle", "hollow": "circle-open", "dotted": "circle-open-dot"}[style]
        common = {"type": "scatter", "name": label, "showlegend": False}
        points = [(row, seed) for row in rows for seed in row["seeds"]]
        data.append({
            **common, "mode": "markers", "x": [row["macs_by_seed"][seed] / 1e6 for row, seed in points],
            "y": [row["seeds"][seed] for row, seed in points],
            "marker": {"color": color, "symbol": symbol, "size": 5, "opacity": 0.5},
            "hovertext": [f"{escape(label)}, budget {row['budget']}, seed {seed}" for row, seed in points],
        })  # fmt: skip
        data.append({
            **common, "mode": "lines+markers", "x": [row["macs"]["mean"] / 1e6 for row in rows],
            "y": [row["accuracy"]["mean"] for row in rows], "line": {"color": color, "width": 1.5},
            "error_y": {**_deviations(rows), "color": color},
            "marker": {"color": color, "symbol": symbol, "size": 11, "line": {"width": 2 if style != "filled" else 0}},
            "hovertext": [
                f"{escape(label)}, budget {row['budget']}: {plus_minus(row['accuracy'], 2)} %" for row in rows
            ],
        })  # fmt: skip
    values = [value for row in found["rows"] for value in row["seeds"].values()]
    layout = _layout("multiply-adds, millions", "test accuracy, %")
    if full is not None:
        values.append(full["accuracy"])
        layout["shapes"] = [{
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": full["accuracy"], "y1": full["accuracy"],
            "line": {"dash": "dot", "width": 1.5, "color": "#888888"},
        }]  # fmt: skip
    layout["yaxis"]["range"] = _range(values)
    return {"data": data, "layout": layout}


def bars(found: Found, budget: str) -> dict[str, Any]:
    """Fig. 3: a group of bars per transfer, a bar per method."""
    transfers = list(found["config"]["transfers"])
    data = []
    for label in found["config"]["methods"]:
        rows = [row for row in found["rows"] if (row["method"], row["budget"]) == (label, budget)]
        color, style = _look(found, label)
        fill = {"filled": color, "hollow": "rgba(0,0,0,0)", "dotted": "rgba(0,0,0,0)"}[style]
        data.append({
            "type": "bar", "name": label, "showlegend": False, "x": [row["transfer"] for row in rows],
            "y": [row["accuracy"]["mean"] for row in rows], "error_y": _deviations(rows),
            "marker": {
                "color": fill, "line": {"color": color, "width": 1.5},
                "pattern": {"shape": "." if style == "dotted" else "", "fgcolor": color},
            },
            "hovertext": [
                f"{escape(label)}: {plus_minus(row['accuracy'], 2)} % "
                f"({', '.join(f'{value:.2f}' for value in row['seeds'].values())})" for row in rows
            ],
        })  # fmt: skip
    layout = _layout("transfer", "test accuracy, %")
    layout |= {"barmode": "group", "bargap": 0.25}
    layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": transfers}
    layout["yaxis"]["range"] = _range([value for row in found["rows"] for value in row["seeds"].values()])
    return {"data": data, "layout": layout}


def _range(values: Sequence[float]) -> list[float]:
    """Bounds of an axis with room around the values."""
    low, high = min(values), max(values)
    room = max(0.5, 0.15 * (high - low))
    return [round(low - room, 1), round(high + room, 1)]


def _deviations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "type": "data", "array": [row["accuracy"]["deviation"] or 0 for row in rows], "thickness": 1.5, "width": 3,
    }  # fmt: skip


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "gridwidth": 1}
    return {
        "xaxis": {**axis, "title": {"text": x}}, "yaxis": {**axis, "title": {"text": y}},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "hovermode": "closest",
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(text)}</th>" for text in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _failed(failed: Sequence[Mapping[str, str]]) -> str:
    if not failed:
        return ""
    return "<h2>Failed</h2>\n" + _table(("job", "error"), [[one["job"], one["error"]] for one in failed])


def _script_json(value: Any) -> str:
    return json.dumps(value).replace("</", "<\\/")


STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1c1e21; --faint: #5c6370; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181c; --text: #e6e8eb; --faint: #a0a7b4; --line: #363b44; }
}
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 0.25rem; }
.note { color: var(--faint); margin: 0 0 0.5rem; font-size: 0.9rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: 0.95rem; } .chart { height: 400px; }
.legend { list-style: none; margin: 0.5rem 0 1rem; padding: 0; font-size: 0.9rem; }
.legend li { display: inline-block; margin-right: 1.1rem; }
.legend i { display: inline-block; box-sizing: border-box; width: 11px; height: 11px; margin-right: 6px; }
.legend i { border: 2px solid currentColor; border-radius: 50%; } .legend .filled { background: currentColor; }
.legend .dotted { background: radial-gradient(currentColor 25%, transparent 35%); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; overflow-wrap: normal; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
th:nth-child(-n+3), td:nth-child(-n+3), th:last-child, td:last-child { text-align: left; }
"""
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function themed(layout) {
  const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(name).trim();
  const copy = structuredClone(layout);
  copy.paper_bgcolor = copy.plot_bgcolor = of("--ground");
  copy.font.color = of("--text");
  copy.hoverlabel = {bgcolor: of("--ground"), bordercolor: of("--line"), font: {color: of("--text")}};
  for (const axis of [copy.xaxis, copy.yaxis]) { axis.gridcolor = axis.linecolor = of("--line"); }
  return copy;
}
function errorsThemed(data) {
  const color = getComputedStyle(document.documentElement).getPropertyValue("--text").trim();
  return data.map(trace => trace.type === "bar" ? {...trace, error_y: {...trace.error_y, color}} : trace);
}
function draw() {
  for (const [name, chart] of Object.entries(charts)) {
    const data = errorsThemed(chart.data).map(trace => ({hovertemplate:
      trace.hovertext ? "%{hovertext}<br>%{x}, %{y:.2f} %<extra></extra>" : undefined, ...trace}));
    Plotly.react(name, data, themed(chart.layout), {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
draw();
dark.addEventListener("change", draw);
"""
