"""The page in a real browser: it draws, it moves, and it can be read on a wide and on a narrow screen."""

import json
from collections import OrderedDict

import pytest
import torch
from browser import browser, draw_all, require_readable, set_screen, until
from runs import SUMMARY, write_run
from torch import nn
from toys import TinyNet

import tas

# of the moving picture: width of every bar of a trace, as a share of the full model's bar
SHARES = """
const bars = number => [...document.querySelectorAll(".figure .trace.bars")[number].querySelectorAll(".point path")]
  .map(path => path.getBBox().width);
return bars(arguments[0]).map((width, place) => width / bars(0)[place]);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return tas.report(write_run(tmp_path_factory.mktemp("runs") / "run", epochs=5))


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def wanted(page, epoch: int) -> list[float]:
    """Shares of the bars after an epoch, from the run's files."""
    graph = tas.Graph.from_json((page.parent / "graph.json").read_text())
    row = tas.Record.read(page.parent / "record.jsonl").epochs("search")[epoch - 1]["architecture"]
    shares = [row["widths"]["stem.0"] / graph.full.widths["stem.0"]]
    for block in range(3):
        is_kept = block < row["depths"]["blocks"]
        for width in (f"blocks.{block}.conv1", "stem.0"):
            shares.append(is_kept * row["widths"][width] / graph.full.widths[width])
    return [*shares, 1.0]


def shows(window, page, epoch: int) -> bool:
    return window.execute_script(SHARES, 1) == pytest.approx(wanted(page, epoch), abs=0.02)


def test_the_slider_and_the_buttons_move_the_bars_and_nothing_is_logged(window, page):
    from selenium.webdriver import ActionChains

    set_screen(window, width=1280)
    window.get(page.as_uri())
    until(lambda: shows(window, page, 5))
    rail = window.find_element("css selector", ".slider-rail-touch-rect")
    for share, epoch in ((-0.49, 1), (0.0, 3), (0.49, 5), (0.25, 4)):
        ActionChains(window).move_to_element_with_offset(rail, int(share * rail.size["width"]), 0).click().perform()
        until(lambda epoch=epoch: shows(window, page, epoch))
        assert f"epoch {epoch} of 5" in window.find_element("css selector", ".slider-label").text
    window.find_element("css selector", ".updatemenu-button").click()
    until(lambda: shows(window, page, 1))
    until(lambda: shows(window, page, 5))
    draw_all(window)
    assert window.get_log("browser") == []


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_can_be_read_on_wide_and_narrow_screens_in_light_and_dark(window, page, width):
    require_readable(window, page, width)


def test_on_a_narrow_screen_words_about_latency_and_rounds_are_whole(window, tmp_path):
    model = nn.Sequential(OrderedDict(a_part_with_a_long_name=TinyNet()))
    run = write_run(tmp_path / "run", epochs=0, graph=tas.trace(model, torch.zeros(1, 3, 8, 8)))
    summary = {**SUMMARY, "full": {**SUMMARY["full"], "latency_spread_ms": 1.5}}
    summary |= {name: {**summary[name], "macs": 123456789, "latency_ms": 1234.5} for name in ("full", "pruned")}
    (run / "summary.json").write_text(json.dumps(summary))
    sizes = json.loads((run / "architecture.json").read_text())
    architecture = {name: sizes[name] for name in ("widths", "depths")}
    record = tas.Record(run / "record.jsonl")
    for number in range(2):
        row = {"round": number, "steps": 3 + number, "images": 4, "losses": [12.5, 13.0], "loss": 12.5, "macs": 1}
        record.add("search", part="halving", **row, architecture=architecture)
    set_screen(window, width=400)
    window.get(tas.report(run).as_uri())
    draw_all(window)
    assert "no gain: " in window.find_element("css selector", "table").text
    assert window.execute_script('const a = document.querySelector(".scroll"); return a.scrollWidth <= a.clientWidth')
    label, frame = (window.find_element("css selector", one).rect for one in (".slider-label", ".figure"))
    assert frame["x"] <= label["x"]
    assert label["x"] + label["width"] <= frame["x"] + frame["width"]
