"""Soft filter pruning: the shortest filters are zero after every epoch, and may come back."""

import copy

import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed
from torch import nn
from toys import TinyNet, tiny_source

import tas
from tas.data import Source
from tas.errors import TrainingError
from tas.graph import Graph
from tas.nn.importance import filter_norms, makers
from tas.soft_filters import train_softly, zero_filters


def halved(graph: Graph) -> tas.Architecture:
    return tas.Architecture({name: max(1, size // 2) for name, size in graph.full.widths.items()}, graph.full.depths)


def soft(model: nn.Module, graph: Graph, *, source: Source | None = None, **options) -> nn.Module:
    base = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    return train_softly(model, graph, halved(graph), source or tiny_source(), **{**base, **options})


def test_the_shortest_filters_are_zero_and_all_else_untouched():
    graph = tas.trace(perturbed(nets.Plain()), images())
    model = perturbed(nets.Plain(), dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    zero_filters(model, graph, tas.Architecture({"first.0": 5, "second.0": 12}))
    lengths = [float(before["first.0.weight"][channel].square().sum().sqrt()) for channel in range(8)]
    off = sorted(np.argsort(lengths)[:3].tolist())
    on = [channel for channel in range(8) if channel not in off]
    assert model.first[0].weight[off].eq(0).all()
    assert torch.equal(model.first[0].weight[on], before["first.0.weight"][on])
    del before["first.0.weight"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", nets.ALL)
def test_as_many_filters_stay_as_asked_for_and_in_every_layer_that_makes_the_width(name):
    model, graph = perturbed(nets.ALL[name]()), nets.graph_of(name)
    zero_filters(model, graph, halved(graph))
    ranked = tas.rank(model, graph, filter_norms(model, graph))
    tensors = dict(ranked.named_parameters(remove_duplicate=False))
    for maker in makers(graph):
        weight, kept = tensors[maker.parameter.name].movedim(maker.dim, 0), halved(graph).widths[maker.width]
        assert weight[maker.channels >= kept].eq(0).all()
        assert weight[(maker.channels >= 0) & (maker.channels < kept)].flatten(1).norm(dim=1).gt(0).all()


def test_a_filter_that_is_zero_gets_a_gradient_and_comes_back():
    torch.manual_seed(0)
    model = perturbed(TinyNet())
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    zero_filters(model, graph, halved(graph))
    off = model.stem[0].weight.detach().flatten(1).norm(dim=1) == 0
    assert int(off.sum()) == 4
    value = nn.functional.cross_entropy(model.train()(torch.rand(8, 3, 8, 8)), torch.arange(8) % 4)
    value.backward()
    assert model.stem[0].weight.grad[off].abs().sum() > 0


def test_training_learns_ends_with_zero_filters_and_repeats_itself():
    torch.manual_seed(0)
    source, first = tiny_source(), TinyNet()
    graph = tas.trace(first, torch.zeros(1, 3, 8, 8))
    state, trained = torch.get_rng_state(), []
    for _ in range(2):
        trained.append(soft(copy.deepcopy(first), graph, epochs=6, learning_rate=0.05))
    assert torch.equal(state, torch.get_rng_state())
    one, other = trained
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not one.training
    for values in filter_norms(one, graph).values():
        assert int((values == 0).sum()) == 4
    small = tas.derive(tas.rank(one, graph, filter_norms(one, graph)), graph, halved(graph))
    assert tas.measure(tas.recalibrate(small, source, batch_size=16), source, seconds=0.01).accuracy > 80


def test_a_loss_that_explodes_is_an_error():
    model = TinyNet()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(TrainingError, match="the loss of sfp became nan; lower sfp_learning_rate"):
        soft(model, graph, loss=lambda outputs, targets: outputs.mean() * float("nan"))


def test_an_image_that_is_nan_is_blamed_itself():
    model = TinyNet()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(TrainingError, match="the loss of sfp became nan; image .* has NaN or infinite values: mend"):
        soft(model, graph, source=tiny_source(broken=7))
