"""A page that opens anywhere: one HTML file with its figures, its style and plotly.js inside, light and dark."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from tas.storage import write_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# apart for every kind of colour blindness, and visible on light and on dark pages
COLORS = ("#3b86de", "#d27800", "#871eff", "#ff4b87", "#965a2d", "#b42d87")


@dataclass(frozen=True)
class Chart:
    """A figure under its title.

    The page gives background, ink and the colours of traces that name none, so that they follow light and dark.

    Attributes:
        title: plain text, with the unit.
        figure: its layout sets height and margins; the width is the page's.
    """

    title: str
    figure: Figure


Part = str | Chart | Sequence[Chart]


def write_page(path: Path, title: str, parts: Sequence[Part]) -> None:
    """Write a page.

    Args:
        path: of the file.
        title: plain text, of the browser's tab.
        parts: from top to bottom; text is HTML as it is, charts in a sequence stand side by side where there is room.

    Raises:
        RunError: the place cannot be written.
    """
    from plotly.offline import get_plotlyjs

    body = "\n".join(part if isinstance(part, str) else _charts(part) for part in parts)
    template = Template((files("tas") / "page.html").read_text(encoding="utf-8"))
    parts_of_page = {"title": plain(title), "body": body, "colors": json.dumps(COLORS), "plotly": get_plotlyjs()}
    write_text(path, template.substitute(parts_of_page))


def scatter_figure(x: str) -> Figure:
    """An empty figure of points, without a legend: that would take its room on a narrow screen (see `key`).

    Args:
        x: title of the horizontal axis, with the unit.
    """
    import plotly.graph_objects as go

    axis = {"automargin": True, "zeroline": False, "ticklabelstandoff": 7}  # away from each other where axes begin
    return go.Figure(layout={
        "xaxis": {"title": x, **axis}, "yaxis": axis, "margin": {"l": 48, "r": 12, "t": 8, "b": 8},
        "height": 380, "hovermode": "closest", "showlegend": False,
    })  # fmt: skip


def padded_range(values: Sequence[float]) -> list[float]:
    """Bounds of an axis with room around the values."""
    low, high = min(values), max(values)
    room = max(0.5, 0.15 * (high - low))
    return [round(low - room, 1), round(high + room, 1)]


def key(items: Sequence[tuple[str, str]]) -> str:
    """What the marks of figures mean, as text that breaks anywhere.

    Args:
        items: CSS of the mark's ground or border, and its meaning in plain text.
    """
    marks = (f'<span><i style="border-radius:50%;{style}"></i>{plain(text)}</span>' for style, text in items)
    return f'<p class="key">{"".join(marks)}</p>'


def plain(value: Any) -> str:
    """Plain text as HTML; also for the texts of a figure, which plotly reads as HTML."""
    return html.escape(str(value))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """An HTML table.

    Args:
        head: plain text of the first row.
        rows: cells in plain text.
        words: how many columns from the left hold words; the others hold numbers.
    """
    kinds = ["word"] * words + ["number"] * (len(head) - words)
    lines = [_row("th", head, kinds), *(_row("td", cells, kinds) for cells in rows)]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _row(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    texts = (plain(cell).replace(" %", "&nbsp;%") for cell in cells)
    inside = (f'<{tag} class="{kind}">{text}</{tag}>' for text, kind in zip(texts, kinds, strict=True))
    return f"<tr>{''.join(inside)}</tr>"


def _charts(part: Chart | Sequence[Chart]) -> str:
    charts = [part] if isinstance(part, Chart) else part
    return f'<div class="row">{"".join(map(_chart, charts))}</div>'


def _chart(chart: Chart) -> str:
    figure = json.loads(chart.figure.to_json() or "{}")
    figure["layout"].pop("template", None)
    content = json.dumps(figure, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it can end the script
    place = f'<div class="figure" style="height:{figure["layout"].get("height", 300)}px"></div>'
    return f'<div><h3>{plain(chart.title)}</h3>{place}<script type="application/json">{content}</script></div>'
