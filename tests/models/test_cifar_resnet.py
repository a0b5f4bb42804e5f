import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tas.errors import ModelError
from tas.models import cifar_resnet

# Multiply-adds of convolutions and linear layers for one 3x32x32 image and 10 classes, from the paper's table.
MACS = {20: 40_813_184, 32: 69_124_736, 56: 125_747_840, 110: 253_149_824, 164: 247_646_720}


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 164])
def test_the_depth_is_the_number_of_layers_without_shortcuts(depth):
    layers = [
        name
        for name, module in cifar_resnet(depth).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]
    assert len(layers) == depth


@pytest.mark.parametrize(("depth", "macs"), MACS.items())
def test_macs_are_the_papers(depth, macs):
    with torch.device("meta"):
        model = cifar_resnet(depth)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("depth", [20, 164])
@pytest.mark.parametrize("size", [8, 16, 32, 36])
def test_any_image_size_divisible_by_four_gives_one_row_of_logits_per_image(depth, size):
    with torch.device("meta"):
        assert cifar_resnet(depth, num_classes=7)(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_modules_have_the_usual_names():
    names = [name for name, _ in cifar_resnet(20).named_modules()]
    wanted = [
        "conv1",
        "bn1",
        "layer1.0.conv1",
        "layer1.0.bn1",
        "layer1.2.conv2",
        "layer2.0.shortcut",
        "layer3.2.bn2",
        "linear",
    ]
    assert set(wanted) <= set(names)


def test_a_stage_transition_pools_and_convolves_without_norm_or_bias():
    model = cifar_resnet(20)
    pool, convolution = model.get_submodule("layer2.0.shortcut").children()
    assert isinstance(pool, nn.AvgPool2d)
    assert (pool.kernel_size, pool.stride) == (2, 2)
    assert convolution.weight.shape == (32, 16, 1, 1)
    assert convolution.bias is None
    assert isinstance(model.get_submodule("layer2.1.shortcut"), nn.Identity)
    assert isinstance(model.get_submodule("layer1.0.shortcut"), nn.Identity)


def test_a_block_computes_relu_of_the_residual_plus_the_shortcut():
    block = cifar_resnet(20).get_submodule("layer2.0").eval()
    x = torch.rand(2, 16, 8, 8)
    out = torch.relu(block.bn1(block.conv1(x)))
    expected = torch.relu(block.bn2(block.conv2(out)) + block.shortcut(x))
    torch.testing.assert_close(block(x), expected)


def test_no_activation_module_is_called_twice():
    calls = []
    with torch.device("meta"):
        model = cifar_resnet(164)
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *args, name=name: calls.append(name))
    model(torch.zeros(2, 3, 8, 8, device="meta"))
    assert len(calls) == len(set(calls)) == 1 + 54 * 3


def test_convolutions_start_kaiming_normal_over_their_outputs():
    weight = cifar_resnet(20).get_submodule("layer3.1.conv1").weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_the_same_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(cifar_resnet(20).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("depth", [18, 0, -20, "20"])
def test_another_depth_lists_the_choices(depth):
    with pytest.raises(ModelError, match="choose one of 20, 32, 44, 56, 110, 164"):
        cifar_resnet(depth)


def test_no_classes_are_refused():
    with pytest.raises(ModelError, match="at least 1 class, got num_classes=0"):
        cifar_resnet(20, num_classes=0)
