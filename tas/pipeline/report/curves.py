"""Numbers over the epochs of a run, as figures; several runs share each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from tas.budget import Budget
from tas.errors import BudgetError
from tas.page import COLORS, Chart, plain
from tas.pipeline.report.files import RunFiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Curve = tuple[str, list[tuple[int, float]], dict[str, Any]]  # name, points, look of the line

_HEIGHT = 280
_DASHES = ("solid", "dot", "dash", "dashdot")
_STAGES = {"teacher": "full model", "search": "search", "train": "pruned model"}


def search_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Losses, costs against the budget, temperature and entropy of the search; only those with numbers."""
    losses = {"loss": "weights half", "held_out_loss": "held-out half"}
    charts = [
        _chart("loss of the search", runs, "search", losses),
        _costs(runs),
        _rounds(runs),
        _chart("accuracy in the search (%)", runs, "search", {"accuracy": "accuracy"}),
        _chart("temperature of the sampling", runs, "search", {"temperature": "temperature"}),
        _chart("entropy of the choices (nats, mean)", runs, "search", {"entropy": "entropy"}),
    ]
    return [chart for chart in charts if chart]


def training_charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Loss and accuracy on the training set, of the full model where it was trained, and of the pruned one."""
    charts = []
    for stage in ("teacher", "train"):
        charts.append(_chart(f"training loss of the {_STAGES[stage]}", runs, stage, {"loss": "loss"}))
        title = f"accuracy of the {_STAGES[stage]} on its training batches (%)"
        charts.append(_chart(title, runs, stage, {"accuracy": "accuracy"}))
    return [chart for chart in charts if chart]


def _chart(title: str, runs: Sequence[RunFiles], stage: str, quantities: Mapping[str, str]) -> Chart | None:
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        rows = run.record.epochs(stage)
        for place, (key, label) in enumerate(quantities.items()):
            points = [(row["epoch"] + 1, row[key]) for row in rows if row.get(key) is not None]
            name = label if len(runs) == 1 else run.label if len(quantities) == 1 else f"{run.label}: {label}"
            curves.append((name, points, _look(runs, number, place)))
    return _of_curves(title, curves)


def _costs(runs: Sequence[RunFiles]) -> Chart | None:
    """Shares of the full model, so that macs and params fit one axis."""
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        rows, limits = run.record.epochs("search"), _limits(run)
        for place, quantity in enumerate(limits):
            for step, (key, label) in enumerate((("expected", "expected"), ("most_probable", "most probable"))):
                points = [(row["epoch"] + 1, _share(run, quantity, row[key][quantity]))
                          for row in rows if quantity in row.get(key, {})]  # fmt: skip
                name = f"{run.label}: {label} {quantity}" if len(runs) > 1 else f"{label} {quantity}"
                curves.append((name, points, _look(runs, number, step + 2 * place)))
    last = max((x for _, points, _ in curves for x, _ in points), default=1)
    return _of_curves(
        "cost in the search (% of the full model)",
        curves + _budgets(runs, last) if any(points for _, points, _ in curves) else [],
    )


def _rounds(runs: Sequence[RunFiles]) -> Chart | None:
    """Held-out losses of the architectures that are left after so many steps of successive halving."""
    curves: list[Curve] = []
    for number, run in enumerate(runs):
        for place, (label, of) in enumerate((("best", min), ("median", median))):
            points = [(row["steps"], of(row["losses"])) for row in run.rounds]
            curves.append((label if len(runs) == 1 else f"{run.label}: {label}", points, _look(runs, number, place)))
    return _of_curves("held-out loss in successive halving", curves, along="step")


def _budgets(runs: Sequence[RunFiles], last: int) -> list[Curve]:
    """A line per bound; runs under the same one share it."""
    bounds: dict[tuple[str, float], list[str]] = {}
    for run in runs:
        for quantity, limit in _limits(run).items():
            bounds.setdefault((quantity, round(_share(run, quantity, limit), 2)), []).append(run.label)
    line = {"color": "#8d949e", "width": 1.5, "dash": "dash"}
    return [
        (f"budget of {quantity}" + ("" if len(owners) == len(runs) else f", {', '.join(owners)}"),
         [(1, share), (last, share)], line)
        for (quantity, share), owners in bounds.items()
    ]  # fmt: skip


def _share(run: RunFiles, quantity: str, cost: float) -> float:
    """Percent of the full model's cost."""
    assert run.graph is not None
    return 100 * cost / run.graph.full_cost(quantity)


def _limits(run: RunFiles) -> dict[str, int]:
    if run.graph is None or not run.budget:
        return {}
    try:
        return Budget.of(run.budget).limits(run.graph)
    except BudgetError:
        return {}


def _look(runs: Sequence[RunFiles], number: int, place: int) -> dict[str, Any]:
    """Of several runs, each has a colour and the quantities differ by their dashes."""
    if len(runs) == 1:
        return {"width": 2, "color": COLORS[place % len(COLORS)]}
    return {"width": 2, "color": COLORS[number % len(COLORS)], "dash": _DASHES[place % len(_DASHES)]}


def _of_curves(title: str, curves: Sequence[Curve], along: str = "epoch") -> Chart | None:
    import plotly.graph_objects as go

    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return None
    figure: Figure = go.Figure()
    for name, points, look in curves:
        mode = "lines" if len(points) > 1 else "markers"
        figure.add_scatter(x=[x for x, _ in points], y=[y for _, y in points], name=plain(name), mode=mode, line=look)
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    axis = {"automargin": True, "ticklabelstandoff": 7}  # away from each other where both axes begin
    last = max(x for _, points, _ in curves for x, _ in points)
    figure.update_layout(
        height=_HEIGHT + 20 * max(0, len(curves) - 3), margin={"l": 48, "r": 12, "t": 8, "b": 8}, legend=legend,
        showlegend=len(curves) > 1, xaxis={"title": along, **axis, **({"dtick": 1} if last <= 8 else {})},
        yaxis=axis, hovermode="x unified",
    )  # fmt: skip
    return Chart(title, figure)
