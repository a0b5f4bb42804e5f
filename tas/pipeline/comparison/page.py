"""`compare.html`: accuracy over multiply-adds (the paper's Fig. 2), transfers side by side (Fig. 3), and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tas.pipeline.comparison.table import HEAD, Found, headline, notes, origin, plus_minus, table_rows

# Okabe and Ito, 2008, without black and yellow, and three more: they differ for colour-blind people, on light and dark
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a6dd1", "#9a8f2f", "#7f8c8d")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "x", "hexagon", "pentagon")
PATTERNS = ("", "/", "x", ".")


def html_page(found: Found) -> str:
    """The whole page; it needs nothing else, no network either."""
    from plotly.offline import get_plotlyjs

    charts = {"scatter": scatter(found)}
    budgets = list(dict.fromkeys(row["budget"] for row in found["rows"]))
    charts |= {f"bars{index}": bars(found, budget) for index, budget in enumerate(budgets)}
    headings = ["Accuracy over multiply-adds", *(f"Knowledge transfer, budget {budget}" for budget in budgets)]
    figures = "\n".join(
        f'<h2>{escape(heading)}</h2>\n<p class="note">{escape(chart.pop("note"))}</p>\n<div id="{name}" class="chart">'
        f"</div>"
        for heading, (name, chart) in zip(headings, charts.items(), strict=True)
    )
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison: {escape(found['title'])}</title>\n<style>{STYLE}</style>",
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<main>",
        f"<h1>Comparison: {escape(found['title'])}</h1>\n<p>{escape(headline(found))}.</p>",
        figures if found["rows"] else "<p>Nothing has been measured.</p>",
        f"<h2>Every number</h2>\n{_table(HEAD, table_rows(found))}",
        _failed(found["failed"]),
        f"<h2>How to read it</h2>\n<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes(found))}</ul>",
        "<h2>Origin</h2>\n" + "".join(f"<p>{escape(line.replace('`', ''))}</p>" for line in origin(found)),
        f"</main>\n<script>const charts = {_script_json(charts if found['rows'] else {})};{SCRIPT}</script>",
        "</body>\n</html>\n",
    ])  # fmt: skip


def scatter(found: Found) -> dict[str, Any]:
    """Fig. 2: every seed a small mark, their mean a large one with its standard deviation."""
    methods, transfers = list(found["config"]["methods"]), list(found["config"]["transfers"])
    data, named = [], set()
    for row in found["rows"]:
        color, symbol = _of(COLORS, methods, row["method"]), _of(SYMBOLS, transfers, row["transfer"])
        about = f"{row['method']}, {row['transfer']}, budget {row['budget']}"
        common = {"type": "scatter", "mode": "markers", "legendgroup": row["method"], "name": row["method"]}
        seeds = list(row["seeds"])
        data.append({
            **common, "x": [row["macs_by_seed"][seed] / 1e6 for seed in seeds], "y": [row["seeds"][s] for s in seeds],
            "showlegend": False, "marker": {"color": color, "symbol": symbol, "size": 6, "opacity": 0.45},
            "hovertext": [f"{about}, seed {seed}" for seed in seeds],
        })  # fmt: skip
        data.append({
            **common, "x": [row["macs"]["mean"] / 1e6], "y": [row["accuracy"]["mean"]],
            "showlegend": row["method"] not in named, "error_y": _error(row["accuracy"], color),
            "error_x": _error({"deviation": (row["macs"]["deviation"] or 0) / 1e6}, color),
            "marker": {"color": color, "symbol": symbol, "size": 11},
            "hovertext": [f"{about}: {plus_minus(row['accuracy'], 2)} %"],
        })  # fmt: skip
        named.add(row["method"])
    if len(transfers) > 1:  # what the shapes stand for
        data += [
            {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": transfer, "hoverinfo": "skip",
             "marker": {"color": "#888888", "symbol": _of(SYMBOLS, transfers, transfer), "size": 9}}
            for transfer in transfers
        ]  # fmt: skip
    full = found["full"]
    if full is not None:
        data.append({
            "type": "scatter", "mode": "markers", "x": [full["macs"] / 1e6], "y": [full["accuracy"]],
            "name": "full model", "hovertext": ["full model"],
            "marker": {"color": "#888888", "symbol": "star-open", "size": 13, "line": {"width": 2}},
        })  # fmt: skip
    note = (
        "Large marks are means over the seeds with their standard deviation, small ones the seeds. Colours are methods"
    )
    note += ", shapes transfers." if len(transfers) > 1 else "."
    return {"note": note, "data": data, "layout": _layout("multiply-adds, millions", "test accuracy, %")}


def bars(found: Found, budget: str) -> dict[str, Any]:
    """Fig. 3: a group of bars per transfer, a bar per method."""
    methods, transfers = list(found["config"]["methods"]), list(found["config"]["transfers"])
    rows = [row for row in found["rows"] if row["budget"] == budget]
    data = []
    for method in methods:
        own = {row["transfer"]: row for row in rows if row["method"] == method}
        present = [transfer for transfer in transfers if transfer in own]
        color = _of(COLORS, methods, method)
        shape = PATTERNS[methods.index(method) // len(COLORS) % len(PATTERNS)]
        data.append({
            "type": "bar", "name": method, "x": present, "y": [own[t]["accuracy"]["mean"] for t in present],
            "marker": {"color": color, "pattern": {"shape": shape}},
            "error_y": {
                "type": "data", "array": [own[t]["accuracy"]["deviation"] or 0 for t in present], "thickness": 1.5,
                "width": 3,
            },
            "hovertext": [
                f"{method}, {t}: {plus_minus(own[t]['accuracy'], 2)} % "
                f"({', '.join(f'{value:.2f}' for value in own[t]['seeds'].values())})" for t in present
            ],
        })  # fmt: skip
    low, high = _range([value for row in rows for value in row["seeds"].values()])
    layout = _layout("transfer", "test accuracy, %")
    layout |= {"barmode": "group", "bargap": 0.25}
    layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": transfers}
    layout["yaxis"]["range"] = [low, high]
    return {"note": f"Means and standard deviations over the seeds. The axis starts at {low:g} %, not at 0.",
            "data": data, "layout": layout}  # fmt: skip


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of an axis with room around the values."""
    low, high = min(values), max(values)
    room = max(0.5, 0.25 * (high - low))
    return float(f"{low - room:.1f}"), float(f"{high + room:.1f}")


def _of(choices: Sequence[str], names: Sequence[str], name: str) -> str:
    return choices[names.index(name) % len(choices)]


def _error(value: Mapping[str, float | None], color: str) -> dict[str, Any]:
    return {"type": "data", "array": [value["deviation"] or 0], "color": color, "thickness": 1.5, "width": 3}


def _layout(x: str, y: str) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "gridwidth": 1}
    return {
        "xaxis": {**axis, "title": {"text": x}}, "yaxis": {**axis, "title": {"text": y}},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8}, "hovermode": "closest",
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
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
main { max-width: 1100px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 0.25rem; }
.note { color: var(--faint); margin: 0 0 0.5rem; font-size: 0.9rem; }
.chart { height: 480px; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; overflow-wrap: normal; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
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
