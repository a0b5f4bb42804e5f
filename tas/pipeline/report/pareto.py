"""Accuracy over multiply-adds of several runs, and which of their models no other beats."""

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
class Point:
    """One model.

    Attributes:
        label: what it is called.
        macs: multiply-adds per sample.
        accuracy: percent of the test set, or the mean of the user's metric.
        color: of its run; full models have their own.
        detail: more about it, in plain text.
    """

    label: str
    macs: int
    accuracy: float
    color: str
    detail: str = ""

    def beats(self, other: Point) -> bool:
        """Whether it is no costlier and no worse, and one of both better."""
        no_worse = self.macs <= other.macs and self.accuracy >= other.accuracy
        return no_worse and (self.macs, self.accuracy) != (other.macs, other.accuracy)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, by cost."""
    return sorted((one for one in points if not any(other.beats(one) for other in points)), key=lambda one: one.macs)


def points_of(runs: Sequence[RunFiles]) -> list[Point]:
    """Full and small model of every run that has measured its accuracy; a full model that runs share stands once."""
    full: dict[tuple[int, float], list[str]] = {}
    small = []
    for number, run in enumerate(runs):
        before, after = (run.summary[name] for name in ("full", "pruned")) if run.summary else ({}, {})
        if before.get("accuracy") is None or after.get("accuracy") is None:
            continue
        full.setdefault((before["macs"], before["accuracy"]), []).append(run.label)
        budget = f"budget {bounds_text(run.budget)}"
        small.append(Point(run.label, after["macs"], after["accuracy"], COLORS[number % len(COLORS)], budget))
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
        if points := points_of(group):
            on_front = front(points)
            where = f", {data}" if data and len(groups) > 1 else ""
            title = f"test {metric or 'accuracy (%)'}{where}"
            unit = "" if metric else " %"
            parts += [Chart(title, scatter(points, unit)), _key(points, on_front), _words(on_front)]
    return parts


def scatter(points: Sequence[Point], unit: str = " %") -> Figure:
    """Models as points, filled where they are on the front, which is the line of steps."""
    figure, on_front = scatter_figure("multiply-adds, millions"), front(points)
    figure.add_scatter(
        x=[one.macs / 1e6 for one in on_front], y=[one.accuracy for one in on_front], mode="lines",
        line={"color": FULL_COLOR, "width": 1.5, "dash": "dot", "shape": "hv"}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[one.macs / 1e6 for one in points], y=[one.accuracy for one in points], mode="markers",
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


def _words(on_front: Sequence[Point]) -> str:
    names = ", ".join(one.label for one in on_front)
    return (
        f'<p class="quiet">Pareto front, from cheap to costly: {plain(names)}. Its marks are filled; for a hollow one '
        "there is another model that costs no more and is no less accurate. The dotted line is the best accuracy to be "
        "had for at most so many multiply-adds.</p>"
    )
