"""Weights are channels last while a network is trained, and contiguous before and after."""

import pytest
import torch
from torch import nn

from tas.nn.memory_format import channels_last


def _is_last(weight):
    return weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_convolutions_are_channels_last_inside_the_block_alone(precision):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    before = [weight.clone() for weight in model.parameters()]
    with channels_last(model, precision=precision):
        assert _is_last(model[0].weight)
        assert _is_last(model[2].weight)
        assert _is_last(model(torch.zeros(2, 3, 9, 9)))
    assert model[0].weight.is_contiguous()
    assert not _is_last(model[2].weight)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_weights_of_other_dimensions_stay():
    model = nn.ModuleList([nn.Conv3d(2, 3, 3), nn.Conv1d(2, 3, 3), nn.Linear(4, 5)])
    with channels_last(model, precision="no"):
        assert all(weight.is_contiguous() for weight in model.parameters())


def test_an_error_inside_leaves_contiguous_weights():
    model = nn.Conv2d(4, 5, 3)
    with pytest.raises(RuntimeError, match="stop"), channels_last(model, precision="no"):
        raise RuntimeError("stop")
    assert model.weight.is_contiguous()


def test_float32_on_another_device_is_left_alone():
    model = nn.Conv2d(4, 5, 3, device="meta")
    with channels_last(model, precision="no"):
        assert model.weight.is_contiguous()
    with channels_last(model, precision="bf16"):
        assert _is_last(model.weight)
