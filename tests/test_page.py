"""A page is one file that shows what it is given, and nothing in it escapes from its place."""

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest

from tas.errors import RunError
from tas.page import COLORS, Chart, plain, table, write_page


def test_a_page_holds_its_parts_in_order_and_plotly_once(tmp_path):
    charts = [Chart(f"chart {number}", go.Figure(go.Bar(y=[number]))) for number in range(3)]
    path = tmp_path / "new" / "page.html"
    write_page(path, "a <title>", ["<p>first</p>", charts[0], "<p>second</p>", charts[1:]])
    text = path.read_text()
    assert "<title>a &lt;title&gt;</title>" in text
    order = [text.index(word) for word in ("<p>first</p>", "chart 0", "<p>second</p>", "chart 1", "chart 2")]
    assert order == sorted(order)
    assert text.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)


def test_a_figure_cannot_end_its_script_and_brings_no_colours_of_its_own(tmp_path):
    figure = go.Figure(go.Bar(y=[1], name="</script><script>alert(1)</script>"))
    write_page(tmp_path / "page.html", "x", [Chart("x", figure)])
    found = re.findall(r'<script type="application/json">(.*?)</script>', (tmp_path / "page.html").read_text())
    assert len(found) == 1
    content = json.loads(found[0])
    assert content["data"][0]["name"] == "</script><script>alert(1)</script>"
    assert "template" not in content["layout"]


def test_tables_and_texts_are_escaped():
    assert plain("<b> & 'c'") == "&lt;b&gt; &amp; &#x27;c&#x27;"
    assert '<td class="word">&lt;b&gt;</td><td class="number">5&nbsp;%</td>' in table(("a", "b"), [("<b>", "5 %")])


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="choose another folder"):
        write_page(tmp_path / "file" / "page.html", "x", [])


# what is left of linear red, green and blue for people who lack one kind of cone: Machado, Oliveira and Fernandes, IEEE
# TVCG 15(6), 2009, table of severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_lab(color: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear red, green and blue; a distance of 2 is just seen."""
    parts = TO_XYZ @ color.clip(0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(parts > 0.008856, np.cbrt(parts), 7.787 * parts + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_are_told_apart_by_everybody(blindness):
    seen = [in_lab(np.array(BLINDNESS[blindness]) @ linear(color)) for color in COLORS]
    distances = [np.linalg.norm(one - other) for place, one in enumerate(seen) for other in seen[:place]]
    assert min(distances) > 20


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_stand_out_from_the_page(theme, tmp_path):
    write_page(tmp_path / "page.html", title="t", parts=[])
    pages = re.findall(r"--page: (#[0-9a-f]{6})", (tmp_path / "page.html").read_text())
    assert len(pages) == 2
    ground = TO_XYZ[1] @ linear(pages[theme])
    for color in COLORS:  # WCAG 2.2, 1.4.11: graphics need a contrast of 3
        dark, light = sorted((ground, TO_XYZ[1] @ linear(color)))
        assert (light + 0.05) / (dark + 0.05) > 3
