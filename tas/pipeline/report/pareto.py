"""Accuracy over what the budgets of several runs are about, and which of their models no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tas.budget import bounds_text
from tas.page import COLORS, Chart, Part, key, padded_range, plain, scatter_figure
from tas.pipeline.report.files import RunFiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FULL_COLOR = "#8d949e"


@dataclass(frozen=True)
class Axis:
    """What models cost, and how a chart shows it.

    Attributes:
        field: of a `Profile`.
        unit: how much of it is 1 on the axis.
        title: of the axis, with the unit.
        words: for it in a sentence.
    """

    field: str
    unit: float
    title: str
    words: str


AXES = {
    "macs": Axis("macs", 1e6, "multiply-adds, millions", "multiply-adds"),
    "params": Axis("params", 1e6, "parameters, millions", "parameters"),
    "latency": Axis("predicted_latency_ms", 1.0, "predicted latency, ms", "milliseconds, as predicted"),
}


@dataclass(frozen=True)
class Point:
    """One model.

    Attributes:
        label: what it is called.
        cost: what its axis counts.
        accuracy: percent of the test set, or the mean of the user's metric.
        color: of its run; full models have their own.
        detail: more about it, in plain text.
    """

    label: str
    cost: float
    accuracy: float
    color: str
    detail: str = ""

    def beats(self, other: Point) -> bool:
        """Whether it is no costlier and no worse, and one of both better."""
        no_worse = self.cost <= other.cost and self.accuracy >= other.accuracy
        return no_worse and (self.cost, self.accuracy) != (other.cost, other.accuracy)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, by cost."""
    return sorted((one for one in points if not any(other.beats(one) for other in points)), key=lambda one: one.cost)


def axis_of(runs: Sequence[RunFiles]) -> Axis:
    """The one quantity that the budgets of all runs bound, where all of them know it alike; else multiply-adds."""
    measured = [run for run in runs if run.summary]
    bounds = {name for run in measured for name in run.budget} if all(run.budget for run in measured) else set()
    axis = AXES[bounds.pop()] if len(bounds) == 1 else AXES["macs"]
    is_known = all(run.summary[model].get(axis.field) for run in measured for model in ("full", "pruned"))  # type: ignore
    # predictions compare on one processor, in one runtime, for batches of one size
    settings = {
        (run.settings.get("latency_batch"), *(run.summary["full"].get(name) for name in ("device", "runtime")))  # type: ignore
        for run in measured
    }
    return axis if is_known and (axis is not AXES["latency"] or len(settings) == 1) else AXES["macs"]


def points_of(runs: Sequence[RunFiles], axis: Axis = AXES["macs"]) -> list[Point]:
    """Full and small model of every run that has measured its accuracy; a full model that runs share stands once."""
    full: dict[tuple[float, float], list[str]] = {}
    small = []
    for number, run in enumerate(runs):
        before, after = (run.summary[name] for name in ("full", "pruned")) if run.summary else ({}, {})
        if before.get("accuracy") is None or after.get("accuracy") is None:
            continue
        full.setdefault((before[axis.field], before["accuracy"]), []).append(run.label)
        budget = f"budget {bounds_text(run.budget)}"
        small.append(Point(run.label, after[axis.field], after["accuracy"], COLORS[number % len(COLORS)], budget))
    names = {place: "full model" if len(full) == 1 else f"full model of {', '.join(of)}" for place, of in full.items()}
    return [Point(names[place], *place, FULL_COLOR) for place in full] + small


def pareto_parts(runs: Sequence[RunFiles]) -> list[Part]:
    """A chart per data set and metric, with a key and the front in words; nothing where no accuracy is known."""
    groups: dict[tuple[str, str], list[RunFiles]] = {}
    for run in runs:
        metric = run.summary["full"].get("metric", "") if run.summary else ""
        groups.setdefault((str(run.settings.get("data") or ""), metric), []).append(run)
    parts: list[Part] = []
    for (data, metric), group in groups.items():
        axis = axis_of(group)
        if points := points_of(group, axis):
            on_front = front(points)
            where = f", {data}" if data and len(groups) > 1 else ""
            title = f"test {metric or 'accuracy (%)'}{where}"
            unit = "" if metric else " %"
            parts += [Chart(title, scatter(points, axis, unit)), _key(points, on_front), _words(on_front, axis)]
    return parts


def scatter(points: Sequence[Point], axis: Axis = AXES["macs"], unit: str = " %") -> Figure:
    """Models as points, filled where they are on the front, which is the line of steps."""
    figure, on_front = scatter_figure(axis.title), front(points)
    figure.add_scatter(
        x=[one.cost / axis.unit for one in on_front], y=[one.accuracy for one in on_front], mode="lines",
        line={"color": FULL_COLOR, "width": 1.5, "dash": "dot", "shape": "hv"}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[one.cost / axis.unit for one in points], y=[one.accuracy for one in points], mode="markers",
        marker={
            "size": 11, "color": [one.color for one in points],
            "symbol": ["circle" if one in on_front else "circle-open" for one in points],
            "line": {"width": [0 if one in on_front else 2 for one in points]},
        },
        hovertext=[plain(_told(one)) for one in points],
        hovertemplate="%{hovertext}<br>%{x}, %{y:.2f}" + unit + "<extra></extra>",
    )  # fmt: skip
    return figure.update_yaxes(range=padded_range([one.accuracy for one in points]))


def _told(point: Point) -> str:
    return f"{point.label}, {point.detail}" if point.detail else point.label


def _key(points: Sequence[Point], on_front: Sequence[Point]) -> str:
    return key([
        (f"background:{one.color}" if one in on_front else f"border:2px solid {one.color}", one.label) for one in points
    ])  # fmt: skip


def _words(on_front: Sequence[Point], axis: Axis) -> str:
    names = ", ".join(one.label for one in on_front)
    return (
        f'<p class="quiet">Pareto front, from cheap to costly: {plain(names)}. Its marks are filled; for a hollow one '
        "there is another model that costs no more and is no less accurate. The dotted line is the best accuracy to be "
        f"had for at most so many {axis.words}.</p>"
    )
