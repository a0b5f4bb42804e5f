import copy

import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed

from tas.errors import ConfigError, ModelError
from tas.graph import channels_of
from tas.nn.importance import channel_importance
from tas.pipeline.rank import rank
from tas.pipeline.trace import trace


@pytest.mark.parametrize("name", nets.ALL)
def test_ranking_changes_nothing_in_the_function_of_toy_nets(name):
    model, graph = perturbed(nets.ALL[name]()), nets.graph_of(name)
    ranked = rank(model, graph)
    torch.testing.assert_close(ranked(images()), model(images()), rtol=1e-5, atol=1e-5)
    if graph.widths:
        assert any(not torch.equal(a, b) for a, b in zip(ranked.parameters(), model.parameters(), strict=True))


def test_ranking_changes_nothing_in_the_function_of_named_models(named):
    with torch.no_grad():
        wanted, found = named.model(named.images), rank(named.model, named.graph)(named.images)
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 1e-5


def test_ranked_channels_stand_in_falling_importance(named):
    for name, values in channel_importance(rank(named.model, named.graph), named.graph).items():
        assert (np.diff(values) <= 1e-9 * values.max()).all(), name


def test_the_order_given_decides():
    model = perturbed(nets.Concat())
    graph = trace(model, images())
    importance = {width.name: np.arange(width.size, dtype=float) for width in graph.widths}  # the last is the best
    ranked = rank(model, graph, importance)
    assert torch.equal(ranked.left[0].weight, model.left[0].weight.flip(0))
    assert torch.equal(ranked.right.bias, model.right.bias.flip(0))
    merged = torch.cat([torch.arange(7, -1, -1), torch.arange(13, 7, -1)])
    assert torch.equal(ranked.norm.running_mean, model.norm.running_mean[merged])
    layout = next(p.layouts[0] for layer in graph.layers for p in layer.parameters if p.name == "norm.weight")
    assert channels_of(layout, "right").tolist() == [-1] * 8 + list(range(6))


def test_channels_of_equal_importance_keep_their_order():
    model = perturbed(nets.Plain())
    graph = trace(model, images())
    ranked = rank(model, graph, {width.name: np.ones(width.size) for width in graph.widths})
    assert all(torch.equal(a, b) for a, b in zip(ranked.parameters(), model.parameters(), strict=True))


def test_the_model_given_is_not_changed():
    model = perturbed(nets.Residual())
    graph, before = trace(model, images()), copy.deepcopy(model.state_dict())
    rank(model, graph)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_graph_of_another_model_is_refused():
    graph = trace(nets.Plain(), images())
    with pytest.raises(ModelError, match="the graph does not fit this Residual: first.0.weight should have shape"):
        rank(nets.Residual(), graph)


def test_importance_that_does_not_fit_is_refused_by_name():
    model = perturbed(nets.Plain())
    graph = trace(model, images())
    for importance in ({}, {"first.0": np.ones(7), "second.0": np.ones(12)}):
        with pytest.raises(ConfigError, match="importance of 'first.0' must be one number for each of its 8 channels"):
            rank(model, graph, importance)
