import nets
import pytest
import torch
from nets import graph_of, images
from torch import nn

from tas.graph import Graph, Layer, Run, channels_of
from tas.pipeline.trace import trace


def layouts(graph: Graph, parameter: str):
    return next(p.layouts for layer in graph.layers for p in layer.parameters if p.name == parameter)


def layer(graph: Graph, name: str) -> Layer:
    return next(item for item in graph.layers if item.name == name)


def test_a_concatenation_is_two_runs_on_one_axis():
    both = (Run("left.0", 0, 8), Run("right", 0, 6))
    graph = graph_of("concat")
    assert layouts(graph, "last.0.weight")[1] == both
    assert layouts(graph, "norm.running_var") == (both,)


def test_a_flattened_channel_fills_as_many_positions_as_it_has_pixels():
    assert layouts(graph_of("flatten to linear"), "hidden.weight")[1] == (Run("conv.0", 0, 6, 16),)


def test_a_flipped_copy_names_its_channels_backwards():
    layout = layouts(graph_of("rolled"), "last.0.weight")[1]
    assert channels_of(layout, "stem.0").tolist() == [*range(8), *reversed(range(8))]


def test_a_depthwise_convolution_repeats_every_channel():
    assert layouts(graph_of("depthwise with multiplier"), "filter.weight")[0] == (Run("expand.0", 0, 8, 2),)


def test_padded_channels_are_nobody_s():
    padded = (Run(None, 0, 3), Run("stem.0", 0, 6), Run(None, 0, 3))
    assert layouts(graph_of("padded shortcut"), "head.2.weight")[1] == padded


@pytest.mark.parametrize(
    ("name", "mixers"),
    [
        ("plain", {"first.0": "first.1", "first.1": "first.1", "second.0": "second.1"}),
        ("norm without affine", {"first.0": "first.1", "first.1": "first.1"}),
        ("norm with nothing", {"first.0": "first.0", "first.1": None}),  # a norm without tensors cannot be opened
        ("without norm", {"first": "first", "second": "second", "third": "third", "head": None}),
        ("concat", {"left.0": "left.1", "right": "right", "norm": None}),
        ("depthwise", {"expand.0": "expand.1", "filter": None, "norm": None, "project.0": "project.1"}),
        ("shared", {"twice.0": "twice.0", "twice.1": None}),  # called twice
        ("words", {"words": "words", "parts": "parts", "join": "join"}),
    ],
)
def test_candidates_are_mixed_behind_the_norm_that_alone_reads_them_or_in_the_layer(name, mixers):
    graph = graph_of(name)
    assert {path: layer(graph, path).mixed_by for path in mixers} == mixers


def test_layers_in_blocks_that_may_go_are_paid_only_while_they_stay():
    graph = graph_of("residual")
    gates = {item.name: item.gate for item in graph.layers}
    assert gates["stage.0.inner.0"] is None
    assert (gates["stage.1.inner.0"], gates["stage.2.outer.1"]) == (("stage", 1), ("stage", 2))


def test_a_width_names_all_its_layers():
    (stream,) = [width for width in graph_of("residual").widths if width.name == "stem.0"]
    wanted = {"stem.0", "stem.1", "head.2"} | {
        f"stage.{i}.{part}" for i in range(3) for part in ("inner.0", "outer.0", "outer.1")
    }
    assert set(stream.layers) == wanted


def test_a_weight_shared_by_two_layers_is_counted_once():
    model = nets.Tied()
    assert trace(model, images()).params() == sum(parameter.numel() for parameter in model.parameters())


def test_a_table_that_also_makes_the_logits_stays_and_is_named_as_the_reason():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.hidden, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens):
            x = self.words(tokens)
            return self.head(x + self.hidden(x))

    graph = trace(Tied().eval(), torch.zeros(1, 3, dtype=torch.long))
    assert any("belongs to another module" in item.reason for item in graph.frozen if item.axis == "hidden.weight[0]")


def test_a_table_whose_rows_are_scaled_by_their_length_stays_and_keeps_its_values():
    model = nn.Sequential(nn.Embedding(9, 8, max_norm=0.5), nn.Linear(8, 8), nn.Flatten(), nn.Linear(24, 3)).eval()
    before = model[0].weight.detach().clone()
    graph = trace(model, torch.zeros(1, 3, dtype=torch.long))
    assert any("max_norm" in item.reason for item in graph.frozen if item.axis == "0.weight[1]")
    assert torch.equal(model[0].weight, before)
