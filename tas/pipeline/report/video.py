"""The search as a moving picture: the channels of every layer after every epoch.

Source:
    Dong and Yang, 2019, Video 1 of the paper's page, https://arxiv.org/abs/1905.09717
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tas.architecture import Architecture
from tas.page import Chart, plain
from tas.pipeline.report.files import RunFiles
from tas.pipeline.report.rows import LayerRow, layer_rows

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_LETTERS = 24  # of a layer's name
FRAMES = 120  # more are not told apart on a slider, and every one costs bytes
KEY = (
    '<p class="key quiet"><span><i style="background:var(--kept)"></i>channels kept</span>'
    '<span><i style="background:var(--fixed)"></i>kept, never changed</span>'
    '<span><i style="background:var(--full)"></i>full model</span>'
    '<span><i style="background:repeating-linear-gradient(45deg,var(--dropped) 0 2px,transparent 2px 5px)"></i>'
    "block dropped</span>"
    '<span><i style="background:var(--result);width:3px"></i>result of the run</span></p>'
    '<p class="quiet">After an epoch, the most probable architecture is shown, whatever it costs; after a round of '
    "successive halving, the best so far. The result holds the budget: the most probable that does, or the winner.</p>"
)
_KEPT, _FIXED, _FULL, _DROPPED, _RESULT = "#3b86de", "#8d949e", "rgba(128,128,128,0.28)", "#b9655a", "#e0712f"
_ABOVE, _BELOW = 112, 48  # pixels for the buttons and the slider, and for the axis


def video(run: RunFiles, *, limit: int = FRAMES, named: bool = False) -> Chart | None:
    """The architecture of every layer, a frame per epoch and per round of the search; without any, the result alone.

    Args:
        run: whose graph and record are shown; without them, there is nothing to see.
        limit: most frames.
        named: whether the title names the run.
    """
    if run.graph is None or run.latest is None:
        return None
    rows = layer_rows(run.graph)
    shown = thinned(run.epochs, limit)
    architectures = [run.architecture_of(row) for row in shown]
    figure = _picture(rows, architectures[-1] if shown else run.latest, run.chosen)
    if shown:
        labels = [_label(run, row, architecture) for row, architecture in zip(shown, architectures, strict=True)]
        _set_in_motion(figure, rows, architectures, [row["epoch"] + 1 for row in shown], labels)
    after = {"epoch": " after every epoch of the search", "round": " after every round of successive halving"}
    when = " and".join(after[kind] for kind in dict.fromkeys(map(_kind, shown)))
    return Chart(f"{f'{run.label}: ' if named else ''}channels (x) of every layer (y, first on top){when}", figure)


def thinned(epochs: list[Any], limit: int = FRAMES) -> list[Any]:
    """At most `limit` of them at even distances, the first and the last among them."""
    if len(epochs) <= limit:
        return epochs
    return [epochs[round(place * (len(epochs) - 1) / (limit - 1))] for place in range(limit)]


def _label(run: RunFiles, row: dict[str, Any], architecture: Architecture) -> str:
    assert run.graph is not None
    share = 100 * run.graph.macs(architecture) / max(1, run.graph.macs())
    same = [other["epoch"] for other in run.epochs if _kind(other) == _kind(row)]
    loss = f", loss {row['loss']:.3f}" if _kind(row) == "round" else ""
    return f"{_kind(row)} {same.index(row['epoch']) + 1} of {len(same)}: {share:.1f} % of macs{loss}"


def _kind(row: dict[str, Any]) -> str:
    return "round" if row.get("part") == "halving" else "epoch"


def _picture(rows: list[LayerRow], shown: Architecture, chosen: Architecture | None) -> Figure:
    import plotly.graph_objects as go

    step = max(7, min(22, round(880 / max(1, len(rows)))))  # of a deep net, the whole fits on one screen
    places = list(range(len(rows)))
    about = [[plain(row.name), row.full, plain(", ".join(row.widths)) or "never changed"] for row in rows]
    bar = {"y": places, "orientation": "h", "customdata": about}
    end = "<br>width: %{customdata[2]}<extra></extra>"
    colors = [_KEPT if row.widths else _FIXED for row in rows]
    pattern = {"shape": "/", "size": 5, "fgcolor": _DROPPED, "bgcolor": "rgba(0,0,0,0)", "solidity": 0.3}
    figure = go.Figure(
        [
            go.Bar(x=[row.full for row in rows], marker_color=_FULL, hoverinfo="skip", **bar),
            go.Bar(x=_kept(rows, shown), marker_color=colors, **bar,
                   hovertemplate="%{customdata[0]}<br>%{x} of %{customdata[1]} channels" + end),
            go.Bar(x=_dropped(rows, shown), marker={"color": _DROPPED, "pattern": pattern}, **bar,
                   hovertemplate="%{customdata[0]}<br>block dropped; %{x} channels before" + end),
            _result(rows, chosen, step),
        ]
    )  # fmt: skip
    every = -(-13 // step)  # a label needs 13 pixels
    names = [_short(row.name) for row in rows]
    figure.update_layout(
        barmode="overlay", bargap=0.25, showlegend=False, height=_ABOVE + _BELOW + step * len(rows),
        margin={"l": 8, "r": 16, "t": _ABOVE, "b": _BELOW}, xaxis={"title": "channels", "rangemode": "tozero"},
        yaxis={"range": [len(rows) - 0.5, -0.5], "tickvals": places[::every], "ticktext": names[::every],
               "automargin": True, "showgrid": False, "zeroline": False, "tickfont": {"size": 11},
               "ticklabelstandoff": 5},
    )  # fmt: skip
    return figure


def _kept(rows: list[LayerRow], architecture: Architecture) -> list[int]:
    return [row.kept(architecture) for row in rows]


def _dropped(rows: list[LayerRow], architecture: Architecture) -> list[int]:
    return [row.full if row.is_dropped(architecture) else 0 for row in rows]


def _result(rows: list[LayerRow], chosen: Architecture | None, step: int) -> Any:
    """A mark where each layer ends up: the decoding may leave the last epoch to hold the budget."""
    import plotly.graph_objects as go

    marked = [
        (row.kept(chosen), place)
        for place, row in enumerate(rows)
        if chosen and row.widths and not row.is_dropped(chosen)
    ]
    line = {"width": 2.5, "color": _RESULT}
    return go.Scatter(
        x=[size for size, _ in marked], y=[place for _, place in marked], mode="markers", hoverinfo="skip",
        marker={"symbol": "line-ns", "size": max(3, 0.4 * step), "line": line},
    )  # fmt: skip


def _short(name: str) -> str:
    """The end of a long path: it is what tells two layers apart."""
    return plain(name if len(name) <= MOST_LETTERS else "…" + name[1 - MOST_LETTERS :])


def _set_in_motion(
    figure: Figure, rows: list[LayerRow], architectures: list[Architecture], epochs: list[int], labels: list[str]
) -> None:
    import plotly.graph_objects as go

    figure.frames = [
        go.Frame(name=str(epoch), traces=[1, 2], data=[go.Bar(x=_kept(rows, found)), go.Bar(x=_dropped(rows, found))])
        for epoch, found in zip(epochs, architectures, strict=True)
    ]
    pause = max(60, min(400, 12000 // len(epochs)))  # milliseconds; the whole takes about 12 seconds at most
    at_once = {"mode": "immediate", "transition": {"duration": 0}, "frame": {"duration": 0, "redraw": True}}
    moving = {"transition": {"duration": 0}, "frame": {"duration": pause, "redraw": True}, "fromcurrent": False}
    steps = [
        {"label": label, "method": "animate", "args": [[str(epoch)], at_once]}
        for label, epoch in zip(labels, epochs, strict=True)
    ]
    buttons = [
        {"label": "▶ play", "method": "animate", "args": [None, moving]},
        {"label": "❚❚ pause", "method": "animate", "args": [[None], at_once]},
    ]
    hidden = {"size": 1, "color": "rgba(0,0,0,0)"}  # the names of the steps would overlap; the current one is shown
    figure.update_layout(
        sliders=[{
            "steps": steps, "active": len(steps) - 1, "x": 0, "len": 1, "y": 1, "yanchor": "bottom", "font": hidden,
            "pad": {"b": 4, "t": 0}, "ticklen": 0, "minorticklen": 0,
            "currentvalue": {"font": {"size": 13}, "xanchor": "right"},  # room to the left, above the names of layers
        }],
        updatemenus=[{
            "type": "buttons", "direction": "right", "buttons": buttons, "showactive": False, "x": 0, "y": 1,
            "xanchor": "left", "yanchor": "bottom", "pad": {"b": 70, "l": 0, "t": 0},
        }],
    )  # fmt: skip
