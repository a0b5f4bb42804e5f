"""A page is one file that shows what it is given, and nothing in it escapes from its place."""

import json
import re

import plotly.graph_objects as go
import pytest

from tas.errors import RunError
from tas.page import Chart, plain, table, write_page


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
