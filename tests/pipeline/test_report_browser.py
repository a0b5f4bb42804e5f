"""The page in a real browser: it draws, it moves, and it can be read on a wide and on a narrow screen."""

import pytest
from browser import browser, draw_all, require_readable, set_screen, until
from runs import write_run

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
