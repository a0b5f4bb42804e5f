"""Weights averaged over neighbouring channels: the formula, and what they leave of the function."""

import copy
import math

import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed

from tas.architecture import Architecture
from tas.graph import channels_of
from tas.nn.interpolate import interpolate
from tas.nn.surgery import cut
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace

NAMES = [*nets.EXACT, "chunked", "input added", "auxiliary head", "recurrent"]


def groups(size: int, wanted: int) -> list[range]:
    """The channels of the full model that each channel of the small one stands for."""
    return [range(math.floor(i * size / wanted), math.ceil((i + 1) * size / wanted)) for i in range(wanted)]


def with_equal_neighbours(model, graph, sizes):
    """A copy in which all channels of a group are made equal; what reads them stays as it is."""
    model = copy.deepcopy(model)
    for layer in graph.layers:
        module = model.get_submodule(layer.name)
        for item in layer.parameters:
            tensor = dict(model.state_dict(keep_vars=True))[item.name].data
            for dim, layout in enumerate(item.layouts):
                is_read = dim == 1 and isinstance(module, torch.nn.Conv2d | torch.nn.Linear | torch.nn.RNNBase)
                for name in {run.width for run in layout or () if run.width is not None and not is_read}:
                    channels = channels_of(layout, name)
                    for group in groups(graph.full.widths[name], sizes[name]):
                        first = np.flatnonzero(channels == group[0])
                        for channel in group:
                            other = np.flatnonzero(channels == channel)
                            tensor.index_copy_(
                                dim, torch.as_tensor(other), tensor.index_select(dim, torch.as_tensor(first))
                            )
    return model


def prepared(name: str):
    model = perturbed(nets.ALL[name](), dtype=torch.double)
    return model, trace(model, images(dtype=torch.double))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shrink", [2, 1000])
def test_a_model_of_equal_neighbours_computes_the_same_with_one_channel_for_each_group(name, shrink):
    model, graph = prepared(name)
    sizes = {width.name: width.size // shrink if width.size % shrink == 0 else 1 for width in graph.widths}
    model = with_equal_neighbours(model, graph, sizes)
    small = interpolate(model, graph, Architecture(sizes, graph.full.depths))
    inputs = images(dtype=torch.double)
    torch.testing.assert_close(small(inputs), model(inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "concat", "depthwise with multiplier", "rolled"])
def test_a_model_of_equal_channels_computes_the_same_at_every_size(name):
    model, graph = prepared(name)
    model = with_equal_neighbours(model, graph, {width.name: 1 for width in graph.widths})
    for size in (1, 3, 5):
        sizes = {width.name: min(size, width.size) for width in graph.widths}
        small = interpolate(model, graph, Architecture(sizes, graph.full.depths))
        torch.testing.assert_close(small(images(dtype=torch.double)), model(images(dtype=torch.double)))


def test_weights_are_means_over_outputs_and_shared_sums_over_inputs():
    model, graph = prepared("plain")
    small = interpolate(model, graph, Architecture({"first.0": 3, "second.0": 5}))
    over, under = groups(12, 5), groups(8, 3)
    full = model.second[0].weight.detach().numpy()
    shared = np.zeros((12, 3, 3, 3))
    for j in range(8):
        owners = [i for i in range(3) if j in under[i]]
        for i in owners:
            shared[:, i] += full[:, j] / len(owners)
    wanted = np.stack([shared[list(group)].mean(0) for group in over])
    np.testing.assert_allclose(small.second[0].weight.detach().numpy(), wanted, rtol=1e-12)
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(model.second[1], tensor).detach().numpy()
        means = [values[list(group)].mean() for group in over]
        np.testing.assert_allclose(getattr(small.second[1], tensor).detach().numpy(), means, rtol=1e-12)


def test_the_input_weights_add_up_to_what_they_were():
    model, graph = prepared("flatten to linear")
    small = interpolate(model, graph, Architecture({"conv.0": 4, "hidden": 7}))
    for layer in ("hidden", "last"):
        before, after = (net.get_submodule(layer).weight.sum(1) for net in (model, small))
        if layer == "hidden":
            before = torch.stack([before[list(group)].mean() for group in groups(10, 7)])
        torch.testing.assert_close(after, before)


def test_the_input_weights_of_a_standardised_convolution_add_up_too():
    model, graph = prepared("standardised")
    small = interpolate(model, graph, Architecture({**graph.full.widths, "first": 4}, {}))
    assert small.second.weight.shape[1] == 4
    torch.testing.assert_close(small.second.weight.sum(1), model.second.weight.sum(1))


@pytest.mark.parametrize("name", ["residual", "concat", "tied weights", "shared in blocks"])
def test_the_full_size_is_the_model(name):
    model, graph = prepared(name)
    small = interpolate(model, graph, graph.full)
    assert all(torch.allclose(value, model.state_dict()[key]) for key, value in small.state_dict().items())


def test_shapes_are_those_of_a_cut_and_the_model_is_left_alone():
    model, graph = prepared("residual")
    before = copy.deepcopy(model.state_dict())
    model.stem[0].weight.requires_grad_(False)
    architecture = Architecture({name: max(1, size // 2) for name, size in graph.full.widths.items()}, {"stage": 2})
    small, other = derive(model, graph, architecture, weights="interpolate"), cut(model, graph, architecture)
    assert {key: value.shape for key, value in small.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }
    assert isinstance(small.stage[2], torch.nn.Identity)
    assert not small.stem[0].weight.requires_grad
    assert all(parameter.grad_fn is None for parameter in small.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not torch.equal(small.stem[0].weight, other.stem[0].weight)
