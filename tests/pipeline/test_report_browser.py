"""The page in a real browser: it draws, it moves, and it can be read on a wide and on a narrow screen."""

import time
from functools import partial

import pytest
from browser import browser, set_scheme, set_screen
from runs import write_run

import tas

# of the moving picture: width of every bar of a trace, as a share of the full model's bar
SHARES = """
const bars = number => [...document.querySelectorAll(".figure .trace.bars")[number].querySelectorAll(".point path")]
  .map(path => path.getBBox().width);
return bars(arguments[0]).map((width, place) => width / bars(0)[place]);
"""
DRAWN = 'return [...document.querySelectorAll(".figure")].map(place => place.querySelectorAll(".main-svg").length > 0);'
# rectangles of all texts in figures: [text, left, top, right, bottom]
TEXTS = """
return [...document.querySelectorAll(".figure text")].filter(text => text.getBoundingClientRect().width > 3)
  .map(text => [text.textContent, text.getBoundingClientRect()])
  .map(([text, box]) => [text, box.left, box.top, box.right, box.bottom]);
"""
LUMINANCES = """
const luminance = color => color.match(/[0-9.]+/g).slice(0, 3).map(Number).map(value => value / 255)
  .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
const page = luminance(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll("h1, .quiet, .figure .ytick text, .slider-label, .updatemenu-item-text")]
  .filter(text => parseFloat(getComputedStyle(text).fontSize) > 3)
  .map(text => getComputedStyle(text)[text.tagName === "text" ? "fill" : "color"])
  .map(color => [page, luminance(color)]);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return tas.report(write_run(tmp_path_factory.mktemp("runs") / "run", epochs=5))


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def until(found, seconds: float = 20.0):
    """Wait for what a page does in its own time."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)


def draw_all(window):
    """Figures are drawn when they come near the screen."""
    height = window.execute_script("return document.documentElement.scrollHeight")
    for top in range(0, height, 500):
        window.execute_script(f"scrollTo(0, {top})")
        time.sleep(0.05)
    until(lambda: all(window.execute_script(DRAWN)))
    window.execute_script("scrollTo(0, 0)")


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
    set_screen(window, width=width)
    window.get(page.as_uri())
    draw_all(window)
    assert window.execute_script("return document.documentElement.scrollWidth") <= width
    texts = window.execute_script(TEXTS)
    assert len(texts) > 30
    for place, (text, left, top, right, bottom) in enumerate(texts):
        assert left >= 0, text
        assert right <= width, text
        for other, left2, top2, right2, bottom2 in texts[place + 1 :]:
            apart = right <= left2 + 1 or right2 <= left + 1 or bottom <= top2 + 3 or bottom2 <= top + 3
            assert apart, f"{text!r} overlaps {other!r}"
    for scheme in ("light", "dark"):
        set_scheme(window, scheme)  # while the page is open: it follows
        until(lambda scheme=scheme: all(map(partial(is_readable, scheme), luminances(window))))
    assert window.get_log("browser") == []


def is_readable(scheme: str, luminance: tuple[float, float]) -> bool:
    """Whether text stands out as the scheme has it: WCAG 2.1, contrast of text, level AA."""
    ground, ink = luminance
    low, high = sorted(luminance)
    return (ink > ground) == (scheme == "dark") and (high + 0.05) / (low + 0.05) >= 4.5


def luminances(window) -> list[tuple[float, float]]:
    """Of the page and of every text, in [0, 1]."""
    return window.execute_script(LUMINANCES)
