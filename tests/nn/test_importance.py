"""Every criterion against its formula in explicit loops, in double precision, and against gates of autograd."""

import copy

import nets
import numpy as np
import pytest
import token_nets
import torch
from nets import images, perturbed
from torch import Tensor, nn

from tas.errors import DataError, ModelError
from tas.graph import Graph
from tas.nn.importance import batch_norm_scales as scales
from tas.nn.importance import (
    channel_importance,
    filter_norms,
    makers,
    ranked,
    taylor_importance,
)
from tas.pipeline.trace import trace

WEIGHTS_ALONE = ("l1", "l2", "fpgm", "bn_scale")


def prepared(net: nn.Module) -> tuple[nn.Module, Graph]:
    model = perturbed(net)
    graph = trace(model, images())
    return model.double(), graph


def first_tensor(outputs) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else first_tensor(next(iter(outputs)))


def squares(outputs, targets) -> Tensor:
    return first_tensor(outputs).square().mean()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(images(seed=seed, dtype=torch.float64), torch.arange(4)) for seed in range(count)]


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_sum_the_weights_of_a_channel_over_all_its_axes_each_weighted_equally(criterion, power):
    model, graph = prepared(nets.Plain())
    state, wanted = model.state_dict(), np.zeros(8)
    for name, dim in (("first.0.weight", 0), ("first.1.weight", 0), ("second.0.weight", 1)):
        energy = np.zeros(8)
        for channel in range(8):
            for value in state[name].select(dim, channel).flatten().tolist():
                energy[channel] += abs(value) ** power
        wanted += energy / (energy.sum() / 8)
    np.testing.assert_allclose(channel_importance(model, graph, criterion)["first.0"], wanted, rtol=1e-12)


def test_a_channel_that_fills_many_features_counts_with_all_of_them():
    model, graph = prepared(nets.FlattenToLinear())
    weight, energy = model.state_dict()["hidden.weight"], np.zeros(6)
    for feature in range(96):
        energy[feature // 16] += float(weight[:, feature].square().sum())
    wanted = energy / (energy.sum() / 96)
    for name in ("conv.0.weight", "conv.1.weight"):
        own = model.state_dict()[name].square().reshape(6, -1).sum(1).numpy()
        wanted = wanted + own / own.mean()
    np.testing.assert_allclose(channel_importance(model, graph)["conv.0"], wanted, rtol=1e-12)


def test_a_weight_counts_under_any_name_and_a_bias_under_none():
    model, graph = prepared(token_nets.TOKEN_NETS["torch attention"]())
    attention, wanted = model.blocks[0].attention.inner, np.zeros(3)
    for weight, dim in ((attention.in_proj_weight, 0), (attention.out_proj.weight, 1)):
        energy = weight.detach().square().sum(1 - dim).reshape(-1, 3, 4)  # queries, keys, values; heads; places
        wanted += energy.sum((0, 2)).numpy() / float(energy.mean())
    np.testing.assert_allclose(channel_importance(model, graph)["blocks.0.attention.inner"], wanted, rtol=1e-12)


def distances(filters: Tensor) -> np.ndarray:
    count = len(filters)
    found = np.zeros(count)
    for one in range(count):
        for other in range(count):
            found[one] += float((filters[one] - filters[other]).square().sum().sqrt())
    return found


def test_fpgm_sums_the_distances_to_all_other_filters():
    model, graph = prepared(nets.Plain())
    wanted = distances(model.first[0].weight.detach())
    np.testing.assert_allclose(channel_importance(model, graph, "fpgm")["first.0"], wanted / wanted.mean(), rtol=1e-6)


def test_fpgm_of_a_residual_stream_weighs_all_layers_that_make_it_equally():
    model, graph = prepared(nets.Residual())
    wanted = np.zeros(8)
    for layer in (model.stem[0], *(block.outer[0] for block in model.stage)):
        found = distances(layer.weight.detach())
        wanted += found / found.mean()
    np.testing.assert_allclose(channel_importance(model, graph, "fpgm")["stem.0"], wanted, rtol=1e-6)


def test_filters_of_a_grouped_convolution_lie_once_in_every_group_and_of_a_transposed_one_on_the_second_axis():
    model, graph = prepared(nets.Grouped())
    weight = model.grouped.weight.detach()
    width = graph.full.widths["grouped"]
    filters = torch.stack([weight[channel::width].flatten() for channel in range(width)])
    np.testing.assert_allclose(filter_norms(model, graph)["grouped"], filters.norm(dim=1).numpy(), rtol=1e-12)
    model, graph = prepared(nets.Transposed())
    weight = model.up.weight.detach()
    norms = [float(weight[:, channel].square().sum().sqrt()) for channel in range(weight.shape[1])]
    np.testing.assert_allclose(filter_norms(model, graph)["up"], norms, rtol=1e-12)


def test_batch_norm_scales_are_summed_over_the_norms_a_channel_passes():
    model, graph = prepared(nets.Residual())
    wanted = model.stem[1].weight.detach().abs()
    for block in model.stage:
        block.outer[1].weight.data[0] *= -1
        wanted = wanted + block.outer[1].weight.detach().abs()
    np.testing.assert_allclose(channel_importance(model, graph, "bn_scale")["stem.0"], wanted.numpy(), rtol=1e-12)
    model, graph = prepared(nets.Concat())
    found = channel_importance(model, graph, "bn_scale")
    np.testing.assert_allclose(found["right"], model.norm.weight.detach().abs()[8:].numpy(), rtol=1e-12)


def test_a_width_without_a_batch_norm_is_judged_by_l2():
    model, graph = prepared(nets.WithoutNorm())
    assert scales(model, graph) == {}
    found, wanted = channel_importance(model, graph, "bn_scale"), channel_importance(model, graph, "l2")
    assert all((found[name] == wanted[name]).all() for name in wanted)


GATED = {
    "plain": (nets.Plain, {"first.0": ["first.1"], "second.0": ["second.1"]}),
    "plain without scales": (
        lambda: nets.Plain(affine=False), {"first.0": ["first.0"], "second.0": ["second.0"]},
    ),
    "without norm": (nets.WithoutNorm, {"first": ["first"], "second": ["second"], "third": ["third"]}),
    "residual": (
        nets.Residual,
        {"stem.0": ["stem.1", *(f"stage.{i}.outer.1" for i in range(3))], "stage.1.inner.0": ["stage.1.inner.1"]},
    ),
}  # fmt: skip


def gate_losses(model: nn.Module, paths: list[str], gate: Tensor, inputs: Tensor) -> Tensor:
    def multiply(module, given, output):
        return output * gate.view(1, -1, *[1] * (output.dim() - 2))

    hooks = [model.get_submodule(path).register_forward_hook(multiply) for path in paths]
    value = squares(model(inputs), None)
    for hook in hooks:
        hook.remove()
    return value


@pytest.mark.parametrize("name", GATED)
def test_taylor_is_the_squared_gradient_of_a_gate_summed_over_batches(name):
    make, gates = GATED[name]
    model, graph = prepared(make())
    found = taylor_importance(model, graph, batches(), squares)
    for width, paths in gates.items():
        wanted = torch.zeros(graph.full.widths[width], dtype=torch.float64)
        for inputs, _ in batches():
            gate = torch.ones_like(wanted, requires_grad=True)
            (slope,) = torch.autograd.grad(gate_losses(model, paths, gate, inputs), gate)
            wanted += slope.square()
        np.testing.assert_allclose(found[width], wanted.numpy(), rtol=1e-8, atol=1e-16)


def test_taylor_predicts_what_switching_a_channel_a_little_off_does_to_the_loss():
    model, graph = prepared(nets.Residual())
    found, step = taylor_importance(model, graph, batches(1), squares)["stem.0"], 1e-5
    for channel in range(8):
        values = []
        for sign in (-1, 1):
            gate = torch.ones(8, dtype=torch.float64)
            gate[channel] += sign * step
            with torch.no_grad():
                values.append(float(gate_losses(model, GATED["residual"][1]["stem.0"], gate, images().double())))
        assert ((values[1] - values[0]) / (2 * step)) ** 2 == pytest.approx(found[channel], rel=1e-5, abs=1e-14)


def test_taylor_changes_nothing_and_judges_frozen_weights_too():
    model, graph = prepared(nets.Plain())
    wanted = taylor_importance(model, graph, batches(), squares)
    model.requires_grad_(False).train()
    before = copy.deepcopy(model.state_dict())
    found = taylor_importance(model, graph, batches(), squares)
    assert all((found[name] == wanted[name]).all() for name in wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert model.training


def test_taylor_needs_a_batch():
    model, graph = prepared(nets.Plain())
    with pytest.raises(DataError, match="there is no training batch to measure importance on"):
        taylor_importance(model, graph, [], squares)


@pytest.mark.parametrize("name", nets.ALL)
def test_importance_moves_with_the_channels_whatever_the_layout(name):
    model, graph = perturbed(nets.ALL[name]()).double(), nets.graph_of(name)
    criteria = {
        criterion: lambda model, criterion=criterion: channel_importance(model, graph, criterion)
        for criterion in WEIGHTS_ALONE
    }
    criteria["taylor"] = lambda model: taylor_importance(model, graph, batches(1), squares)
    criteria["filters"] = lambda model: filter_norms(model, graph)
    for criterion, importance in criteria.items():
        values = importance(model)
        assert values.keys() == {width.name for width in graph.widths}
        moved = importance(ranked(model, graph, values))
        for width, before in values.items():
            assert np.isfinite(before).all()
            assert (before >= 0).all()
            np.testing.assert_allclose(
                moved[width], np.sort(before)[::-1], rtol=1e-6, atol=1e-9 * before.max(), err_msg=f"{criterion} {width}"
            )


def test_every_width_has_a_layer_that_makes_it():
    for name in nets.ALL:
        graph = nets.graph_of(name)
        assert {maker.width for maker in makers(graph)} == {width.name for width in graph.widths}


def test_a_graph_of_another_model_is_refused():
    graph = trace(nets.Plain(), images())
    for criterion in WEIGHTS_ALONE:
        with pytest.raises(ModelError, match="the graph does not fit this Residual: first.0.weight should have shape"):
            channel_importance(nets.Residual(), graph, criterion)
    with pytest.raises(ModelError, match="the graph does not fit this Residual"):
        taylor_importance(nets.Residual(), graph, batches(), squares)
