"""`compare.html`: accuracy over multiply-adds (the paper's Fig. 2), transfers side by side (Fig. 3), and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tas.page import COLORS, Chart, Part, key, padded_range, plain, scatter_figure, table, write_page
from tas.pipeline.comparison.table import Found, headline, notes, origin, table_head, table_rows
from tas.profile import plus_minus

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# where there are more methods than colours: of marks, of bars and of the key
_SYMBOLS = ("circle", "circle-open", "circle-open-dot")
_PATTERNS = ("", "", ".")
_SWATCHES = (
    "background:{0}",
    "border:2px solid {0}",
    "border:2px solid {0};background:radial-gradient({0} 25%,transparent 35%)",
)


def write_comparison(path: Path, found: Found) -> None:
    """Write the page of a comparison.

    Args:
        path: of the file.
        found: the content of compare.json.

    Raises:
        RunError: the place cannot be written.
    """
    title = f"Comparison: {found['title']}"
    rows = [[text.replace(" ", "\N{NO-BREAK SPACE}") for text in row] for row in table_rows(found)]
    failed = [[one["job"], one["error"]] for one in found["failed"]]
    write_page(path, title, [
        f"<h1>{plain(title)}</h1>{_paragraphs([headline(found) + '.'])}",
        *(_figures(found) if found["rows"] else ["<p>Nothing has been measured.</p>"]),
        f"<h2>Every number</h2>{table(table_head(found), rows, words=3)}",
        f"<h2>Failed</h2>{table(('job', 'error'), failed, words=2)}" if failed else "",
        f"<h2>How to read it</h2>{_paragraphs(notes(found))}",
        f"<h2>Origin</h2>{_paragraphs(line.replace('`', '') for line in origin(found))}",
    ])  # fmt: skip


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{plain(line)}</p>" for line in lines)


def _figures(found: Found) -> list[Part]:
    """Both figures of the paper, each under its heading with a key of the methods."""
    budgets, transfers = (list(dict.fromkeys(row[name] for row in found["rows"])) for name in ("budget", "transfer"))
    full, unit, line = found["full"], _unit(found), ""
    if full is not None:
        line = f" The dotted line is the full model: {full['accuracy']:.2f}{unit} with {full['macs'] / 1e6:.1f} M."
    low, metric = padded_range(_accuracies(found))[0], found["metric"] or "accuracy (%)"
    return [
        f'<h2>{plain(found["metric"] or "Accuracy")} over multiply-adds</h2><p class="quiet">Large marks are means '
        f"over the seeds with their standard deviation, small ones the seeds.{line}</p>{_key(found)}",
        [Chart(f"test {metric}, transfer {name}", scatter(found, name)) for name in transfers],
        '<h2>Knowledge transfer</h2><p class="quiet">Means and standard deviations over the seeds. The axes start at '
        f"{low:g}{unit}, not at 0.</p>{_key(found)}",
        [Chart(f"test {metric}, budget {name}", bars(found, name)) for name in budgets],
    ]  # fmt: skip


def _key(found: Found) -> str:
    looks = [(label, *_look(found, label)) for label in found["config"]["methods"]]
    return key([(_SWATCHES[style].format(color), label) for label, color, style in looks])


def _look(found: Found, label: str) -> tuple[str, int]:
    """Colour and style of a method, the same in all charts."""
    style, color = divmod(list(found["config"]["methods"]).index(label), len(COLORS))
    return COLORS[color], style % len(_SYMBOLS)


def scatter(found: Found, transfer: str) -> Figure:
    """Fig. 2, for one transfer: a line over the budgets per method, its seeds as small marks."""
    figure, unit, hover = scatter_figure("multiply-adds, millions"), _unit(found), _hover(found)
    for label in found["config"]["methods"]:
        rows = [row for row in found["rows"] if (row["method"], row["transfer"]) == (label, transfer)]
        rows.sort(key=lambda row: row["macs"]["mean"])
        color, style = _look(found, label)
        marker = {"color": color, "symbol": _SYMBOLS[style]}
        points = [(row, seed) for row in rows for seed in row["seeds"]]
        figure.add_scatter(
            x=[row["macs_by_seed"][seed] / 1e6 for row, seed in points],
            y=[row["seeds"][seed] for row, seed in points],
            mode="markers", marker={**marker, "size": 5, "opacity": 0.5}, hovertemplate=hover,
            hovertext=[plain(f"{label}, budget {row['budget']}, seed {seed}") for row, seed in points],
        )  # fmt: skip
        figure.add_scatter(
            x=[row["macs"]["mean"] / 1e6 for row in rows], **_means(rows),
            mode="lines+markers", line={"color": color, "width": 1.5},
            marker={**marker, "size": 11, "line": {"width": 2 if style else 0}}, hovertemplate=hover,
            hovertext=[plain(f"{label}, budget {row['budget']}: {plus_minus(row['accuracy'], 2)}{unit}")
                       for row in rows],
        )  # fmt: skip
    values = _accuracies(found)
    if found["full"] is not None:
        values.append(found["full"]["accuracy"])
        figure.add_hline(found["full"]["accuracy"], line={"dash": "dot", "width": 1.5})
    costs = [cost / 1e6 for row in found["rows"] for cost in row["macs_by_seed"].values()]
    room = 0.1 * max(costs)  # costs that differ by a percent stay together
    figure.update_xaxes(range=[max(0.0, min(costs) - room), max(costs) + room])
    return figure.update_yaxes(range=padded_range(values))


def bars(found: Found, budget: str) -> Figure:
    """Fig. 3: a group of bars per transfer, a bar per method."""
    figure, unit, hover = scatter_figure("transfer"), _unit(found), _hover(found)
    for label in found["config"]["methods"]:
        rows = [row for row in found["rows"] if (row["method"], row["budget"]) == (label, budget)]
        color, style = _look(found, label)
        seeds = (", ".join(f"{value:.2f}" for value in row["seeds"].values()) for row in rows)
        figure.add_bar(
            x=[row["transfer"] for row in rows], **_means(rows),
            marker={"color": "rgba(0,0,0,0)" if style else color, "line": {"color": color, "width": 1.5},
                    "pattern": {"shape": _PATTERNS[style], "fgcolor": color}},
            hovertext=[plain(f"{label}: {plus_minus(row['accuracy'], 2)}{unit} ({values})")
                       for row, values in zip(rows, seeds, strict=True)], hovertemplate=hover,
        )  # fmt: skip
    order = list(found["config"]["transfers"])
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return figure.update_yaxes(range=padded_range(_accuracies(found))).update_layout(
        barmode="group", bargap=0.25, bargroupgap=0.1
    )


def _unit(found: Found) -> str:
    return "" if found["metric"] else " %"


def _hover(found: Found) -> str:
    return "%{hovertext}<br>%{x}, %{y:.2f}" + _unit(found) + "<extra></extra>"


def _accuracies(found: Found) -> list[float]:
    return [value for row in found["rows"] for value in row["seeds"].values()]


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    deviations = [row["accuracy"]["deviation"] for row in rows]  # None, with a single seed, draws nothing
    errors = {"type": "data", "array": deviations, "thickness": 1.5, "width": 3}
    return {"y": [row["accuracy"]["mean"] for row in rows], "error_y": errors}
