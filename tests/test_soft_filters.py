"""Soft filter pruning: what is off is zero, is what the formula says, and may come back."""

import copy

import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed
from torch import nn
from toys import TinyNet, tiny_source

import tas
from tas.errors import TrainingError
from tas.graph import Graph
from tas.nn.importance import filter_norms
from tas.soft_filters import switch_off, train_softly


def halved(graph: Graph) -> tas.Architecture:
    return tas.Architecture({name: max(1, size // 2) for name, size in graph.full.widths.items()}, graph.full.depths)


def soft(model: nn.Module, graph: Graph, **options) -> nn.Module:
    base = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
    return train_softly(model, graph, halved(graph), tiny_source(), **{**base, **options})


def test_the_shortest_filters_are_zero_and_the_others_untouched():
    model = perturbed(nets.Plain(), dtype=torch.float64)
    graph = tas.trace(perturbed(nets.Plain()), images())
    before = copy.deepcopy(model.state_dict())
    switch_off(model, graph, tas.Architecture({"first.0": 5, "second.0": 12}))
    lengths = [float(before["first.0.weight"][channel].square().sum().sqrt()) for channel in range(8)]
    off = sorted(np.argsort(lengths)[:3].tolist())
    on = [channel for channel in range(8) if channel not in off]
    for name in ("first.0.weight", "first.1.bias", "first.1.running_mean"):
        assert model.state_dict()[name][off].eq(0).all()
        assert torch.equal(model.state_dict()[name][on], before[name][on])
    for name in ("first.1.weight", "second.0.weight", "second.1.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize("name", [*nets.EXACT, "grouped", "transposed", "chunked", "convnext", "torch encoder layer"])
def test_after_an_epoch_the_network_computes_what_its_small_one_does(name):
    model = perturbed(nets.ALL[name]())
    graph = tas.trace(model, images())
    switch_off(model, graph, halved(graph))
    small = tas.derive(tas.rank(model, graph, filter_norms(model, graph)), graph, halved(graph))
    if name not in ("convnext", "torch encoder layer", "squeeze-excite"):  # norms over channels see zeros
        torch.testing.assert_close(small(images()), model(images()), rtol=1e-4, atol=1e-5)


def test_a_filter_that_is_zero_gets_a_gradient_and_comes_back():
    torch.manual_seed(0)
    model = TinyNet()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    switch_off(model, graph, halved(graph))
    off = model.stem[0].weight.detach().flatten(1).norm(dim=1) == 0
    assert int(off.sum()) == 4
    value = nn.functional.cross_entropy(model.train()(torch.rand(8, 3, 8, 8)), torch.arange(8) % 4)
    value.backward()
    assert model.stem[0].weight.grad[off].abs().sum() > 0


def test_training_learns_ends_switched_off_and_repeats_itself():
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
    assert tas.measure(one, source, seconds=0.01).accuracy > 80


def test_a_loss_that_explodes_is_an_error():
    model = TinyNet()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(TrainingError, match="the loss of sfp became nan; lower sfp_learning_rate"):
        soft(model, graph, loss=lambda outputs, targets: outputs.mean() * float("nan"))
