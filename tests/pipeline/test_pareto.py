"""Accuracy over cost: which models no other beats."""

import json
from itertools import pairwise

import pytest
from browser import browser, require_readable
from hypothesis import given
from hypothesis import strategies as st
from runs import SUMMARY, write_run

import tas
from tas.page import COLORS
from tas.pipeline.report.files import RunFiles
from tas.pipeline.report.pareto import AXES, Point, axis_of, front, points_of, scatter

MODELS = st.builds(Point, st.just("m"), st.integers(1, 6), st.integers(0, 6).map(float), st.just("#000"))


@given(st.lists(MODELS, max_size=12))
def test_the_front_rises_and_whatever_is_not_on_it_is_beaten_by_a_point_that_is(points):
    found = front(points)
    assert all(a.cost <= b.cost and a.accuracy <= b.accuracy for a, b in pairwise(found))
    for one in points:
        better = [b for b in found if b.cost <= one.cost and b.accuracy >= one.accuracy]
        assert better  # itself, or what beats it
        assert (one in found) == all((b.cost, b.accuracy) == (one.cost, one.accuracy) for b in better)


def write(folder, *, macs: int, accuracy: float | None, full: float = 90.0, data: str = "digits", metric: str = ""):
    run = write_run(folder, epochs=2)
    summary = {**SUMMARY, "full": {**SUMMARY["full"], "accuracy": full, "metric": metric}}
    summary |= {"pruned": {**SUMMARY["pruned"], "macs": macs, "accuracy": accuracy}, "budget": {"macs": macs}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(f"model: mine.py:build\ndata: {data}\nseed: 3\nteacher: {{}}\n")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    models = {"tiny": (200, 80.0), "small": (480, 91.0), "worse": (500, 85.0)}
    return [write(root / name, macs=macs, accuracy=accuracy) for name, (macs, accuracy) in models.items()]


def read(runs) -> list[RunFiles]:
    return [RunFiles.read(run) for run in runs]


def test_every_model_and_the_full_one_is_a_point_and_the_front_is_filled(runs):
    points = points_of(read(runs))
    assert [(one.label, one.cost, one.accuracy) for one in points] == [
        ("full model", 1000, 90.0), ("tiny", 200, 80.0), ("small", 480, 91.0), ("worse", 500, 85.0)
    ]  # fmt: skip
    assert [one.color for one in points[1:]] == list(COLORS[:3])
    line, marks = scatter(points).data
    assert list(zip(line.x, line.y, strict=True)) == [(0.0002, 80.0), (0.00048, 91.0)]
    assert line.line.shape == "hv"  # what is to be had for at most so many multiply-adds
    assert marks.marker.symbol == ("circle-open", "circle", "circle", "circle-open")
    assert "tiny, budget 200 macs" in marks.hovertext[1]


def test_full_models_that_differ_are_told_apart_and_what_has_no_accuracy_is_left_out(runs, tmp_path):
    others = [write(tmp_path / "other", macs=300, accuracy=70.0, full=95.0)]
    others += [write(tmp_path / "unknown", macs=300, accuracy=None), write_run(tmp_path / "begun", finished=False)]
    labels = [one.label for one in points_of(read([*runs, *others]))]
    assert labels == ["full model of tiny, small, worse", "full model of other", "tiny", "small", "worse", "other"]


def test_the_page_of_several_runs_names_the_front_and_one_run_has_none(runs, tmp_path):
    text = tas.report(*runs, output=tmp_path).read_text()
    assert "Pareto front, from cheap to costly: tiny, small." in text
    assert "Pareto front" not in tas.report(runs[0]).read_text()


def test_runs_of_another_metric_have_a_chart_of_their_own(runs, tmp_path):
    other = write(tmp_path / "other", macs=100, accuracy=0.99, metric="mAP50")
    text = tas.report(*runs, other, output=tmp_path / "page").read_text()
    assert "<h3>test accuracy (%), digits</h3>" in text
    assert "<h3>test mAP50, digits</h3>" in text
    assert "from cheap to costly: tiny, small." in text


def test_runs_on_other_data_have_a_chart_of_their_own(runs, tmp_path):
    other = write(tmp_path / "other", macs=100, accuracy=99.0, data="cifar10")
    text = tas.report(*runs, other, output=tmp_path / "page").read_text()
    assert "<h3>test accuracy (%), digits</h3>" in text
    assert "<h3>test accuracy (%), cifar10</h3>" in text
    assert "from cheap to costly: tiny, small." in text
    assert "from cheap to costly: other." in text


def bound(run, budget: dict, *, predicted: float | None = 1.5, device: str = "one", runtime: str = "pytorch"):
    """The run with another budget, and what is known of its latency."""
    summary = json.loads((run / "summary.json").read_text())
    for name, share in (("full", 2.0), ("pruned", 1.0)):
        summary[name] |= {"device": device, "runtime": runtime} | (
            {} if predicted is None else {"predicted_latency_ms": share * predicted}
        )
    (run / "summary.json").write_text(json.dumps({**summary, "budget": budget}))
    return run


@pytest.mark.parametrize(
    ("budgets", "others", "wanted"),
    [
        ([{"latency": "50%"}, {"latency": "3ms"}], {}, "latency"),
        ([{"params": "50%"}, {"params": 20}], {}, "params"),
        ([{"latency": "50%"}, {"macs": "50%"}], {}, "macs"),
        ([{"latency": "50%", "macs": "50%"}] * 2, {}, "macs"),
        ([{"latency": "50%"}] * 2, {"predicted": None}, "macs"),  # a run of before
        ([{"latency": "50%"}] * 2, {"device": "another"}, "macs"),  # its milliseconds are others
        ([{"latency": "50%"}] * 2, {"runtime": "onnxruntime"}, "macs"),
    ],
)
def test_the_axis_is_what_all_budgets_bound_and_all_runs_know(tmp_path, budgets, others, wanted):
    runs = [bound(write(tmp_path / "a", macs=200, accuracy=80.0), budgets[0], predicted=1.5)]
    runs += [bound(write(tmp_path / "b", macs=480, accuracy=91.0), budgets[1], **{"predicted": 1.0, **others})]
    assert axis_of(read(runs)) == AXES[wanted]
    text = tas.report(*runs, output=tmp_path / "page").read_text()
    assert AXES[wanted].title in text
    assert f"the best accuracy to be had for at most so many {AXES[wanted].words}." in text
    if wanted == "latency":  # with more multiply-adds and fewer milliseconds, one beats all
        assert "Pareto front, from cheap to costly: b." in text


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_can_be_read_on_wide_and_narrow_screens_in_light_and_dark(runs, tmp_path, width):
    page = tas.report(*runs, output=tmp_path / "page")
    with browser(tmp_path / "profile") as window:
        require_readable(window, page, width)
        figure = window.find_element("xpath", '//h3[text()="test accuracy (%)"]/..')
        assert len(figure.find_elements("css selector", ".scatterlayer .point")) == 4
        assert len(figure.find_elements("css selector", ".scatterlayer .js-line")) == 1
