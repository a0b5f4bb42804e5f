"""The page of a comparison: its figures show the numbers found, one look per method, and it can be read anywhere."""

import pytest
from browser import browser, require_readable

from tas.page import COLORS
from tas.pipeline.comparison.page import bars, scatter, write_comparison
from tas.pipeline.comparison.plan import CompareConfig
from tas.pipeline.comparison.results import machine, rows_of
from tas.pipeline.comparison.table import markdown
from tas.record import versions

METHODS = "tas tas-paper uniform l1 l2 fpgm taylor"  # more than colours
BARS = """
return [...document.querySelectorAll(".figure .bars .yerror")].map(line => getComputedStyle(line).stroke);
"""


def cell(budget: str, method: str, transfer: str, seed: int, accuracy: float, macs: int) -> dict:
    counts = dict.fromkeys(("params", "search_seconds", "search_in_epochs", "search_epochs", "train_epochs"), 10)
    return {"budget_text": budget, "method": method, "transfer": transfer, "seed": seed, "accuracy": accuracy,
            "macs": macs, "train_seconds": 1.0, **counts}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict:
    config = CompareConfig(methods=METHODS, transfers="none kd", seeds="0 1", budgets="50% 30%")
    cells = [
        cell(budget, method, transfer, seed, 60 + 3 * place + 2 * (transfer == "kd") + seed, int(macs + 10_000 * place))
        for budget, macs in (("50% of macs", 5e6), ("30% of macs", 3e6))
        for place, method in enumerate(METHODS.split()) for transfer in ("none", "kd") for seed in (0, 1)
    ]  # fmt: skip
    full = {"accuracy": 85.25, "macs": 10_000_000, "params": 1000, "epochs": 0, "seconds": 0.0}
    return {
        "title": "a <net> on images", "command": "tas compare <x>", "date": "2026-01-01", "versions": versions(),
        "machine": machine(1, 1), "config": config.to_dict(), "epoch_seconds": {"0": 1.0}, "full": full,
        "metric": "", "failed": [{"job": "cell <i>", "error": "ZeroDivisionError: <bug>"}], "cells": cells,
        "rows": rows_of(cells, config),
    }  # fmt: skip


def test_the_scatter_shows_every_seed_the_means_and_the_full_model(found):
    figure = scatter(found, "kd")
    seeds, means = figure.data[:2]
    assert list(zip(seeds.x, seeds.y, strict=True)) == [(3, 62), (3, 63), (5, 62), (5, 63)]
    assert list(zip(means.x, means.y, strict=True)) == [(3, 62.5), (5, 62.5)]
    assert means.error_y.array == pytest.approx([0.5**0.5] * 2)  # sample deviation of two values that differ by 1
    assert seeds.marker.size < means.marker.size
    (line,) = figure.layout.shapes
    assert (line.y0, line.y1, line.line.dash) == (85.25, 85.25, "dot")
    low, high = figure.layout.yaxis.range
    assert low < 62
    assert high > 85.25


def test_the_bars_are_the_means_of_every_transfer(found):
    figure = bars(found, "30% of macs")
    assert [list(bar.y) for bar in figure.data] == [[60.5 + 3 * i, 62.5 + 3 * i] for i in range(7)]
    assert all(tuple(bar.x) == ("none", "kd") and bar.error_y.array == pytest.approx([0.5**0.5] * 2)
               for bar in figure.data)  # fmt: skip
    assert figure.layout.xaxis.categoryarray == ("none", "kd")


def test_a_method_looks_the_same_everywhere_and_like_no_other(found):
    clouds, groups = scatter(found, "none").data, bars(found, "50% of macs").data
    assert [bar.marker.line.color for bar in groups] == [*COLORS, COLORS[0]]
    for bar, seeds, means in zip(groups, clouds[::2], clouds[1::2], strict=True):
        assert {seeds.marker.color, means.marker.color, means.line.color} == {bar.marker.line.color}
    assert len({(means.marker.color, means.marker.symbol) for means in clouds[1::2]}) == 7
    assert len({(bar.marker.line.color, bar.marker.color) for bar in groups}) == 7


def test_texts_are_escaped_and_failures_told(found, tmp_path):
    write_comparison(tmp_path / "compare.html", found)
    text = (tmp_path / "compare.html").read_text().rpartition("<main>")[2].partition("</main>")[0]
    for escaped in (
        "a &lt;net&gt; on images",
        "tas compare &lt;x&gt;",
        "cell &lt;i&gt;",
        "ZeroDivisionError: &lt;bug&gt;",
    ):
        assert escaped in text
    assert not any(raw in text for raw in ("<net>", "<x>", "<bug>"))
    assert "60.00, 61.00" in text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_can_be_read_on_wide_and_narrow_screens_in_light_and_dark(found, tmp_path, width):
    path = tmp_path / "compare.html"
    write_comparison(path, found)
    with browser(tmp_path / "profile") as window:
        require_readable(window, path, width)  # ends in dark
        colors = window.execute_script(BARS)
        assert len(colors) == 2 * 7 * 2
        assert set(colors) == {"rgb(239, 238, 234)"}  # the page's ink
        assert window.execute_script('return document.querySelectorAll(".scatterlayer .point").length') == 2 * 7 * (
            4 + 2
        )


def test_lines_do_not_run_back_whatever_the_order_of_the_budgets(found):
    rows = sorted(found["rows"], key=lambda row: row["budget"] != "30% of macs", reverse=True)
    for order in (rows, rows[::-1]):
        assert list(scatter({**found, "rows": order}, "kd").data[1].x) == [3, 5]


def test_a_row_without_some_of_its_seeds_says_which_it_has(found):
    cells = [cell for cell in found["cells"] if cell["seed"] == 1 or cell["method"] != "tas"]
    config = CompareConfig(methods=METHODS, transfers="none kd", seeds="0 1", budgets="50% 30%")
    table = markdown({**found, "rows": rows_of(cells, config)})
    assert "| seed 1: 61.00 |" in table
    assert "| 63.00, 64.00 |" in table
