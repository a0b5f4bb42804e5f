import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed
from torch import nn

from tas.architecture import Architecture
from tas.errors import ModelError
from tas.graph import Depth
from tas.nn.rules.opened import Dropped
from tas.nn.surgery import cut, mask, reorder, require_fit, shared_copy
from tas.pipeline.trace import trace


def test_masking_zeroes_exactly_the_weights_that_read_dropped_channels():
    model = perturbed(nets.Concat())
    graph = trace(model, images())
    masked = mask(model, graph, Architecture({"left.0": 3, "right": 2, "last.0": 4}))
    keep = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    assert torch.equal(masked.last[0].weight[:, keep], model.last[0].weight[:, keep])
    assert not masked.last[0].weight[:, ~keep].any()
    assert torch.equal(masked.head[2].weight[:, :4], model.head[2].weight[:, :4])
    assert not masked.head[2].weight[:, 4:].any()
    assert torch.equal(masked.left[0].weight, model.left[0].weight)


def test_flattened_channels_are_cut_with_all_their_pixels():
    model = perturbed(nets.FlattenToLinear())
    graph = trace(model, images())
    small = cut(model, graph, Architecture({"conv.0": 2, "hidden": 10}))
    assert torch.equal(small.hidden.weight, model.hidden.weight[:, : 2 * 16])


def test_channels_used_upside_down_are_cut_upside_down():
    model = perturbed(nets.Rolled())
    graph = trace(model, images())
    small = cut(model, graph, Architecture({"stem.0": 3, "last.0": 10}))
    kept = [0, 1, 2, 8 + 5, 8 + 6, 8 + 7]  # the flipped copy holds channels 2, 1, 0 at its end
    assert torch.equal(small.last[0].weight, model.last[0].weight[:, kept])


@pytest.mark.parametrize("name", nets.ALL | nets.CUT_ALONE)
def test_any_order_of_channels_computes_the_same(name):
    model = perturbed((nets.ALL | nets.CUT_ALONE)[name]())
    graph, draw = nets.graph_of(name), np.random.default_rng(0)
    other = reorder(model, graph, {width.name: draw.permutation(width.size) for width in graph.widths})
    torch.testing.assert_close(other(images()), model(images()), rtol=1e-5, atol=1e-5)


def test_a_reordered_model_is_put_back_by_the_inverse_order():
    model = perturbed(nets.Residual())
    graph, draw = trace(model, images()), np.random.default_rng(0)
    orders = {width.name: draw.permutation(width.size) for width in graph.widths}
    back = reorder(reorder(model, graph, orders), graph, {name: np.argsort(order) for name, order in orders.items()})
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_missing_tensor_is_named():
    graph = trace(nets.Residual(), images())
    require_fit(nets.Residual(), graph)
    with pytest.raises(ModelError, match="stage.2.inner.0.weight should have shape .*, the model has no such tensor"):
        require_fit(nets.Residual(2), graph)


def test_a_missing_table_may_be_one_that_a_forward_makes():
    graph, model = trace(nets.Unsaved(), images()), nets.Unsaved()
    del model.plain
    with pytest.raises(ModelError, match="plain should have shape .*; if its forward makes it, run it once on an"):
        require_fit(model, graph)


def test_a_dropped_block_keeps_numbers_words_and_lists_alone():
    block = nets.Numbered().stage[1]
    block.index, block.kind, block.sources, block.seen = 3, "conv", [1, (2, None)], torch.zeros(2)
    block.cache, block.hook, block._secret = {}, print, 1
    dropped = Dropped(block, Depth("stage", ("stage.0", "stage.1")))
    assert (dropped.index, dropped.kind, dropped.sources) == (3, "conv", [1, (2, None)])
    assert not vars(dropped).keys() & {"seen", "cache", "hook", "_secret"}


@pytest.mark.filterwarnings("ignore:The tensor attribute .* was assigned during export")
def test_what_a_module_remembers_of_its_weights_is_not_copied():
    model = perturbed(nn.Sequential(nets.conv_bn(3, 8), nets.Remembers(), nets.head(8)))
    with torch.no_grad():
        wanted = model(images())
    assert model[1].known
    graph = trace(model, images())
    assert set(graph.full.widths) == {"0.0"}
    assert [item.reason for item in graph.frozen] == ["output of the model"]
    small = cut(model, graph, Architecture({"0.0": 3}, {}))
    assert not small.training
    assert small[1].scale.shape == (3,)
    small(images())
    orders = {"0.0": np.array([7, 6, 5, 4, 3, 2, 1, 0])}
    torch.testing.assert_close(reorder(model, graph, orders)(images()), wanted)
    assert model[1].known  # what was given is not changed


class Writer(nn.Linear):
    """Changes its weights with its mode."""

    def train(self, mode=True):
        return super().train(mode)


def test_weights_that_a_module_may_write_into_are_copied_and_no_others():
    model = nn.Sequential(nn.Linear(3, 3), Writer(3, 3))
    copied = shared_copy(model)
    assert copied[0].weight is model[0].weight
    assert copied[1].weight is not model[1].weight


def test_hooks_and_submodules_of_a_copy_are_its_own():
    model, calls = nets.Plain(), []
    copied = shared_copy(model)
    copied.first.register_forward_hook(lambda *call: calls.append(call))
    copied.first.add_module("more", nn.Identity())
    model(images(dtype=torch.float32))
    assert not calls
    assert "more" not in dict(model.first.named_children())
    copied(images(dtype=torch.float32))
    assert len(calls) == 1
