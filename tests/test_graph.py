import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tas.architecture import Architecture
from tas.cost import Count
from tas.errors import ArchitectureError
from tas.graph import FORMAT, Depth, Frozen, Graph, Layer, Parameter, Run, Width, channels_of, count_of, positions_of
from tas.layout import runs_of

text = st.text(min_size=1, max_size=6)
runs = st.builds(Run, st.one_of(st.none(), text), st.integers(0, 9), st.integers(1, 9), st.integers(1, 4))
layouts = st.one_of(st.none(), st.lists(runs, min_size=1, max_size=3).map(tuple))
axes = st.lists(st.tuples(st.integers(1, 9), layouts), max_size=3)
parameters = st.builds(
    lambda name, dims, is_buffer: Parameter(name, tuple(d[0] for d in dims), tuple(d[1] for d in dims), is_buffer),
    text, axes, st.booleans(),
)  # fmt: skip
counts = st.builds(Count, st.integers(0, 9), st.lists(st.tuples(text, st.integers(1, 9)), max_size=2).map(tuple))
products = st.tuples(st.integers(1, 99), st.lists(counts, max_size=2).map(tuple))
layers = st.builds(
    Layer,
    text,
    text,
    st.lists(parameters, max_size=2).map(tuple),
    st.lists(products, max_size=2).map(tuple),
    st.one_of(st.none(), st.tuples(text, st.integers(1, 5))),
    st.one_of(st.none(), text),
)
tuples_of_text = st.lists(text, max_size=3).map(tuple)
graphs = st.builds(
    Graph,
    st.lists(st.builds(Width, text, st.integers(2, 99), tuples_of_text), max_size=3).map(tuple),
    st.lists(st.builds(Depth, text, tuples_of_text), max_size=2).map(tuple),
    st.lists(layers, max_size=3).map(tuple),
    st.lists(st.builds(Frozen, text, text, text), max_size=2).map(tuple),
    st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(graphs)
def test_a_graph_survives_json(graph):
    assert Graph.from_json(graph.to_json()) == graph


# channels 0-2 of a, each twice; one fixed position; all four of b; channels 0-2 of a once more
LAYOUT = (Run("a", 0, 3, 2), Run(None, 0, 1), Run("b", 0, 4), Run("a", 0, 3))


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([None, None], None),
        ([("a", 0), ("a", 1), None, None], (Run("a", 0, 2), Run(None, 0, 2))),
        ([("a", 0), ("a", 0), ("a", 1), ("a", 1), ("a", 2)], (Run("a", 0, 2, 2), Run("a", 2, 1))),
        ([("a", 0), ("b", 1), ("b", 0), ("a", 1)], (Run("a", 0, 1), Run("b", 1, 1), Run("b", 0, 1), Run("a", 1, 1))),
    ],
)
def test_an_axis_is_described_in_as_few_runs_as_possible(places, found):
    assert runs_of(places) == found


def test_positions_are_those_of_channels_below_the_size():
    literal = [("a", 0), ("a", 0), ("a", 1), ("a", 1), ("a", 2), ("a", 2), None]
    literal += [("b", channel) for channel in range(4)] + [("a", channel) for channel in range(3)]
    for a in (1, 2, 3):
        for b in (1, 2, 3, 4):
            sizes = {"a": a, "b": b}
            kept = [i for i, place in enumerate(literal) if place is None or place[1] < sizes[place[0]]]
            assert positions_of(LAYOUT, sizes).tolist() == kept
            assert count_of(LAYOUT).of(sizes) == len(kept)
    for width in ("a", "b"):
        wanted = [place[1] if place and place[0] == width else -1 for place in literal]
        assert channels_of(LAYOUT, width).tolist() == wanted


def test_a_layout_may_name_channels_in_any_order():
    backwards = tuple(Run("a", channel, 1) for channel in (2, 1, 0))
    assert positions_of(backwards, {"a": 2}).tolist() == [1, 2]


def test_an_empty_layout_has_no_positions():
    assert positions_of((), {}).tolist() == []
    assert np.issubdtype(positions_of((), {}).dtype, np.integer)


def test_a_parameter_counts_frozen_axes_in_full():
    parameter = Parameter("w", (14, 3, 3), (LAYOUT, None, None))
    assert [count.of({"a": 2, "b": 1}) for count in parameter.counts] == [2 * 3 + 1 + 1, 3, 3]


def toy() -> Graph:
    weight = Parameter("conv.weight", (8, 3), ((Run("conv", 0, 8),), None))
    statistics = Parameter("conv.mean", (8,), ((Run("conv", 0, 8),),), is_buffer=True)
    inner = Layer(
        "stage.1.conv", "linear", (Parameter("stage.1.conv.weight", (2, 5), (None, None)),), ((7, ()),), ("stage", 1)
    )
    conv = Layer("conv", "convolution", (weight, statistics), ((64, (Count(0, (("conv", 1),)), Count(3))),))
    return Graph((Width("conv", 8, ("conv",)),), (Depth("stage", ("stage.0", "stage.1", "stage.2")),), (conv, inner))


def test_macs_and_params_follow_the_architecture_and_leave_buffers_out():
    graph = toy()
    assert graph.full == Architecture({"conv": 8}, {"stage": 3})
    assert (graph.macs(), graph.params()) == (64 * 8 * 3 + 7, 8 * 3 + 10)
    small = Architecture({"conv": 2}, {"stage": 1})
    assert (graph.macs(small), graph.params(small)) == (64 * 2 * 3, 2 * 3)


def test_the_dropped_blocks_are_the_tail():
    assert toy().skipped(Architecture({"conv": 8}, {"stage": 1})) == ("stage.1", "stage.2")
    assert toy().skipped(toy().full) == ()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture({"other": 8}, {"stage": 3}), r"width 'conv' is in one and not in the other \(2 such\)"),
        (Architecture({"conv": 8}), r"depth 'stage' is in one and not in the other \(1 such\)"),
        (Architecture({"conv": 9}, {"stage": 3}), "width 'conv' keeps 9; the model has 1 to 8"),
        (Architecture({"conv": 8}, {"stage": 4}), "depth 'stage' keeps 4; the model has 1 to 3"),
    ],
)
def test_an_architecture_of_another_graph_is_refused_by_name(architecture, message):
    for use in (toy().check, toy().macs, toy().params):
        with pytest.raises(ArchitectureError, match=message):
            use(architecture)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "widths": 3}', "null", '"text"'])
def test_text_that_is_no_graph_is_refused(text):
    with pytest.raises(ArchitectureError, match="this is not a graph .*; give the graph.json of a run"):
        Graph.from_json(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value["layers"][1].update(gate=["stage"]),
        lambda value: value["layers"][0].update(products=[[1]]),
        lambda value: value["layers"][0]["products"][0][1][0].update(widths=[["conv", 1, 2]]),
        lambda value: value.update(frozen=[{"axis": "a"}]),
        lambda value: value.update(input_shapes=[3]),
    ],
)
def test_a_damaged_graph_is_refused(damage):
    value = json.loads(toy().to_json())
    damage(value)
    with pytest.raises(ArchitectureError, match="this is not a graph"):
        Graph.from_json(json.dumps(value))


def test_a_graph_of_a_newer_format_asks_to_upgrade():
    with pytest.raises(ArchitectureError, match="written by a newer tas; upgrade"):
        Graph.from_json(f'{{"format": {FORMAT + 1}}}')


def test_the_open_share_counts_layers_that_a_choice_makes_smaller():
    graph = toy()
    assert graph.layer_macs == {"conv": 64 * 8 * 3, "stage.1.conv": 7}
    assert graph.open_share == 1
    closed = replace(graph, layers=(*graph.layers, Layer("head", "linear", (), ((500, (Count(2),)),))))
    assert closed.open_share == pytest.approx(graph.macs() / (graph.macs() + 1000))
    ungated = replace(closed, layers=(closed.layers[0], replace(closed.layers[1], gate=None), closed.layers[2]))
    assert ungated.open_share == pytest.approx(64 * 8 * 3 / closed.macs())
    assert Graph((), (), ()).open_share == 0


def test_a_graph_with_a_summary_beside_it_is_read():
    assert Graph.from_json(json.dumps({**toy().to_dict(), "summary": {"macs": 1}})) == toy()


def test_a_graph_is_printed_as_what_can_be_cut_and_what_is_left_alone():
    frozen = [Frozen(f"head{place}.weight[0]", "output of the model", f"head{place}") for place in range(7)]
    lines = repr(replace(toy(), frozen=(*frozen, Frozen("x[0]", "is a single channel", "")))).splitlines()
    assert lines == [
        "Graph: 1,543 macs, 34 params; 100.0 % of the macs can be cut",
        "",
        "width  channels  layers    macs",
        "conv          8       1  99.5 %",
        "",
        "depth  blocks   macs",
        "stage       3  0.5 %",
        "",
        "left alone: head0, head1, head2, head3, head4 and 2 more: output of the model",
        "",
        "left alone: -: is a single channel",
    ]
    assert repr(Graph((), (), ())) == "Graph: 0 macs, 0 params; 0.0 % of the macs can be cut"
