"""Which identities are found, and what is told about the others."""

import nets
import pytest
import torch
from free_nets import Block, TwoStages, traced
from nets import images, perturbed
from torch import nn

from tas.data import TensorSource
from tas.errors import ConfigError
from tas.nn.rules.shortcut import projection, untrained_norms
from tas.nn.surgery import projected
from tas.pipeline.derive import derive, recalibrate
from tas.pipeline.rank import rank
from tas.pipeline.store import load, save
from tas.pipeline.trace import trace
from tas.space import SearchSpace


def test_every_convolution_has_its_own_width_and_transitions_follow_their_block():
    graph = traced()[1]
    assert [width.name for width in graph.widths] == [
        "stem.0",
        *(f"first.{block}.{part}.0" for block in range(3) for part in ("inner", "outer")),
        *(f"second.{block}.{part}.0" for block in range(2) for part in ("inner", "outer")),
    ]
    assert [(item.path, item.reads, item.makes, item.gate) for item in graph.shortcuts] == [
        ("first.0.shortcut", "stem.0", "first.0.outer.0", None),
        ("first.1.shortcut", "first.0.outer.0", "first.1.outer.0", ("first", 1)),
        ("first.2.shortcut", "first.1.outer.0", "first.2.outer.0", ("first", 2)),
        ("second.1.shortcut", "second.0.outer.0", "second.1.outer.0", ("second", 1)),
    ]
    transition = next(layer for layer in graph.layers if layer.name == "second.0.shortcut.1")
    assert [item[0].width for item in transition.parameters[0].layouts[:2]] == ["second.0.outer.0", "first:exit"]
    assert {item.reason for item in graph.frozen} == {"output of the model"}


def test_tied_is_the_default_and_other_words_are_refused():
    model = TwoStages()
    assert len(trace(model, images()).widths) == 1 + 3 + 1 + 2
    with pytest.raises(ConfigError, match="residuals are 'loose'; they can be tied or free"):
        trace(model, images(), residuals="loose")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "plain"])
def test_a_model_without_replaceable_shortcuts_stays_tied_and_says_so(name):
    model = perturbed(nets.ALL[name]())
    tied, free = nets.graph_of(name), trace(model, images(), residuals="free")
    assert (free.widths, free.depths, free.layers) == (tied.widths, tied.depths, tied.layers)
    notes = [item for item in free.frozen if item not in tied.frozen]
    assert notes
    assert all("module that a projection can replace" in item.reason for item in notes)


def test_kept_blocks_stay_tied():
    model, _ = traced()
    graph = trace(model, images(), residuals="free", keep="first.1")
    assert "first.1.outer.0" not in graph.full.widths
    assert "first.0.outer.0" not in graph.full.widths  # the kept block reads it
    for architecture in (SearchSpace.of(graph).smallest, SearchSpace.of(graph).largest):
        small = derive(model, graph, architecture)
        assert small.get_submodule("first.1.inner.0").weight.shape == (5, 6, 3, 3)
        assert sum(parameter.numel() for parameter in small.parameters()) == graph.params(architecture)


def test_an_identity_that_is_no_shortcut_is_left_alone():
    class Odd(Block):
        def __init__(self):
            super().__init__(6, 6)
            self.skip_norm, self.last = None, nn.Identity()

        def forward(self, x):
            return self.last(super().forward(x if self.skip_norm is None else self.skip_norm(x)))

    model = perturbed(nn.Sequential(nets.conv_bn(3, 6), nn.Sequential(Odd(), Odd(), Odd()), nets.head(6)))
    graph = trace(model, images(), residuals="free")
    assert {item.attribute for item in graph.shortcuts} == {"shortcut"}


def test_a_projection_starts_as_the_alignment_and_stays_it_when_statistics_are_measured():
    model, graph = traced()
    space = SearchSpace.of(graph)
    architecture = space.sample(torch.Generator().manual_seed(2))
    small = derive(model, graph, architecture)
    made = [small.get_submodule(item.path) for item in projected(graph, architecture)]
    assert made
    assert len(untrained_norms(small)) == len(made)
    draw = torch.Generator().manual_seed(0)
    values, labels = torch.randn(48, 3, 8, 8, generator=draw), torch.arange(48) % 5
    recalibrate(small, TensorSource(values, labels, values, labels, name="noise", num_classes=5), batch_size=16)
    for module in made:
        read, out = module[0].in_channels, module[0].out_channels
        x = torch.randn(2, read, 4, 4)
        wanted = torch.zeros(2, out, 4, 4)
        wanted[:, : min(read, out)] = x[:, : min(read, out)]
        assert torch.allclose(module(x), wanted, atol=1e-5)
    assert not untrained_norms(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
    assert projection(torch.eye(3, 2)).training


def test_fresh_weights_reset_the_projections_too():
    model, graph = traced()
    architecture = SearchSpace.of(graph).sample(torch.Generator().manual_seed(2))
    small = derive(model, graph, architecture, weights="fresh")
    assert not untrained_norms(small)
    assert {*small.state_dict()} == {*derive(model, graph, architecture).state_dict()}


def test_ranking_keeps_the_function_of_free_streams():
    model, graph = traced()
    ranked = rank(model, graph)
    assert torch.allclose(ranked(images()), model(images()), atol=1e-5)
    assert not torch.equal(ranked.get_submodule("stem.0").weight, model.get_submodule("stem.0").weight)


def test_interpolated_weights_of_equal_channels_compute_the_same():
    model, graph = traced()
    architecture = SearchSpace.of(graph).sample(torch.Generator().manual_seed(3))
    small = derive(model, graph, architecture, weights="interpolate")
    assert sum(parameter.numel() for parameter in small.parameters()) == graph.params(architecture)
    assert torch.isfinite(small(images())).all()


def test_a_saved_network_with_projections_loads_into_a_fresh_model(tmp_path):
    model, graph = traced()
    architecture = SearchSpace.of(graph).sample(torch.Generator().manual_seed(2))
    small = derive(model, graph, architecture).train()
    small(images())  # other statistics than fresh ones
    save(tmp_path, small.eval(), graph, architecture)
    assert torch.equal(load(tmp_path, TwoStages())(images()), small(images()))
