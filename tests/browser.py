"""A headless Chromium for the tests of pages; where it is missing, they are skipped."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

SWITCHES = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "hide-scrollbars",
)  # fmt: skip
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


@contextmanager
def browser(profile: Path) -> Iterator:
    """A selenium driver.

    Args:
        profile: an empty folder for the browser's own files.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install '.[test]')")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and its driver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (*SWITCHES, f"user-data-dir={profile}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield window
    finally:
        window.quit()


def set_screen(window, *, width: int, height: int = 900, scheme: str = "light") -> None:
    """Size of the screen in pixels, and light or dark."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    set_scheme(window, scheme)


def set_scheme(window, scheme: str) -> None:
    """Light or dark, as a user's system asks for it."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


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


def require_readable(window, page: Path, width: int) -> None:
    """Nothing runs out sideways, no texts of figures overlap, all stand out in light and dark, nothing is logged."""
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
