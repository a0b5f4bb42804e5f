"""What is printed about a graph: everything, in the columns there are, and never nothing."""

import re

import nets
import pytest
import torch
from nets import images, perturbed
from torch import nn

from tas.graph import Frozen, Graph, Layer, Parameter
from tas.pipeline.trace import trace
from tas.show import print_graph, print_profiles, summarize
from tas.space import SearchSpace


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace(perturbed(nets.Residual()), images())


def printed(graph: Graph, capsys, monkeypatch, columns: int = 80, **options) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_graph(graph, SearchSpace.of(graph, **options))
    return capsys.readouterr().out


def row(text: str, first: str) -> list[str]:
    """Cells of the line of a table that starts with this word."""
    (found,) = [cells for line in text.splitlines() if (cells := re.split(r" {2,}", line.strip()))[0] == first]
    return found


def test_every_width_and_depth_has_a_row_with_its_share_of_the_macs(graph, capsys, monkeypatch):
    text = printed(graph, capsys, monkeypatch)
    full, inner = 64 * 9 * (3 * 8 + 3 * 2 * 8 * 6) + 8 * 5, 64 * 9 * 2 * 8 * 6
    for index in range(3):
        name = f"stage.{index}.inner.0"
        assert row(text, name) == [name, "6", "1 2 … 6", "3", f"{100 * inner / full:.1f} %"]
    tied = [
        "stem.0",
        "stem.1",
        "head.2",
        *(f"{i}.{part}" for i in range(3) for part in ("inner.0", "outer.0", "outer.1")),
    ]
    assert row(text, "stem.0") == ["stem.0", "8", "2 3 … 8", str(len(tied)), "100.0 %"]
    assert row(text, "stage") == ["stage", "3", "1 2 3", f"{100 * 2 * inner / full:.1f} %"]


def test_the_costs_are_those_of_the_graph_and_the_space(graph, capsys, monkeypatch):
    text, least = printed(graph, capsys, monkeypatch, choose="depth"), SearchSpace.of(graph, choose="depth").smallest
    assert f"full model: {graph.macs():,} macs, {graph.params():,} params" in text
    share = f"({100 * graph.macs(least) / graph.macs():.1f} %)"
    assert f"smallest: {graph.macs(least):,} macs {share}, {graph.params(least):,} params (" in text
    assert f"open: {100 * graph.open_share:.1f} % of the macs" in text
    chosen = SearchSpace.of(graph).smallest
    print_graph(graph, SearchSpace.of(graph), chosen)
    text = capsys.readouterr().out
    assert f"chosen: {graph.macs(chosen):,} macs" in text
    assert row(text, "stem.0")[3] == "2"


@pytest.mark.parametrize("columns", [80, 120])
def test_every_frozen_axis_is_shown_under_its_reason(capsys, monkeypatch, columns):
    frozen = [
        Frozen(f"blocks.{place}.attention.{name}.weight[0]", f"a long reason {'in many words ' * 6}{place % 2}", module)
        for place in range(60)
        for name in ("query", "key", "value")
        for module in [f"blocks.{place // 4}.norm"]
    ]
    frozen.append(Frozen("a" * 150, "[bold]as it is[/bold] :x:", ""))
    text = printed(Graph((), (), (), tuple(frozen)), capsys, monkeypatch, columns)
    assert " ".join(text.split()).count("left alone: a long reason " + "in many words " * 6) == 2
    assert all(text.count(item.axis) == 1 for item in frozen)
    assert "[bold]as it is[/bold] :x:" in text
    assert "…" not in text
    assert all(len(line) <= columns for line in text.partition("full model")[0].splitlines() if "a" * 150 not in line)
    assert len(text.splitlines()) < 200


def test_a_long_name_goes_on_in_the_next_line(capsys, monkeypatch):
    model = nn.Sequential()
    model.add_module("a" * 90, nn.Conv2d(3, 8, 1))
    model.add_module("last", nn.Conv2d(8, 4, 1))
    text = printed(trace(model, images()), capsys, monkeypatch)
    lines = text.partition("left alone")[0].splitlines()
    assert sum(line.count("a") for line in lines if line.strip().startswith("aa")) == 90


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Conv2d(3, 4, 1), {}, "for the reasons given; change the modules they name, or take a model where one"),
        (nn.BatchNorm2d(3), {}, "the model has no convolution, no linear layer and no residual blocks"),
        (nets.Plain(), {"keep": "*"}, "for the reasons given; keep fewer modules"),
        (
            nets.Plain(),
            {"round_to": 64},
            "this space offers nothing smaller than the full model; allow more with choose",
        ),
    ],
)
def test_where_nothing_can_be_changed_it_says_what_to_do(capsys, monkeypatch, model, options, message):
    graph = trace(model, torch.zeros(4, 3, 8, 8), keep=options.pop("keep", ()))
    text = printed(graph, capsys, monkeypatch, **options)
    assert message in text
    least = SearchSpace.of(graph, **options).smallest
    assert graph.macs(least) == graph.macs()


def test_nothing_is_said_to_be_closed_where_something_is_open(graph, capsys, monkeypatch):
    assert "nothing" not in printed(graph, capsys, monkeypatch)


def test_a_model_without_macs_has_a_cost_too(capsys, monkeypatch):
    graph = Graph((), (), (Layer("norm", "batch_norm", (Parameter("norm.weight", (3,), (None,)),)),))
    assert "smallest: 0 macs (-), 3 params (100.0 %)" in printed(graph, capsys, monkeypatch)


def test_the_summary_counts_what_there_is(graph):
    space = SearchSpace.of(graph)
    assert summarize(graph, space) == {
        "macs": graph.macs(),
        "params": graph.params(),
        "smallest": {"macs": graph.macs(space.smallest), "params": graph.params(space.smallest)},
        "open_share": graph.open_share,
        "widths": 4,
        "depths": 1,
        "frozen": len(graph.frozen),
    }


def test_a_width_whose_channels_stand_for_several_outputs_says_for_how_many(capsys, monkeypatch):
    grouped = trace(perturbed(nets.Grouped()), images())
    text = printed(grouped, capsys, monkeypatch)
    assert row(text, "grouped")[1] == "4 x 2"  # as many in each of the two groups
    assert row(text, "last.0")[1] == "10"


def test_a_quality_of_nothing_and_a_single_model_are_shown(capsys):
    profile = {"accuracy": 0.0, "macs": 10, "params": 3, "latency_ms": 1.0, "metric": "iou"}
    print_profiles({"full": profile, "pruned": {**profile, "macs": 4}})
    assert re.search(r"iou\W+0\W+0\W+\+0\b", capsys.readouterr().out)
    print_profiles({"full": profile})
    assert re.search(r"macs\W+10\W+params", capsys.readouterr().out)
