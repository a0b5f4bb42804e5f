"""The fused norm and mixture against the two operations it stands for."""

import pytest
import torch
import torch.nn.functional as F

from tas.nn.mixed_norm import MixedNorm


def _apart(inputs, weights, bias, mean, variance, momentum, eps):
    normal = F.batch_norm(inputs, mean, variance, None, None, True, momentum, eps)
    return F.conv2d(normal, weights, bias, groups=inputs.shape[1] // weights.shape[1])


def _tensors(groups, with_bias):
    torch.manual_seed(0)
    inputs = (3 * torch.randn(4, 6, 3, 5, dtype=torch.float64) + 2).requires_grad_()
    weights = torch.randn(6, 6 // groups, 1, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True) if with_bias else None
    return inputs, weights, bias


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_gradients_and_statistics_equal_those_of_the_parts(groups, with_bias):
    results = []
    for operation in (MixedNorm.apply, _apart):
        inputs, weights, bias = _tensors(groups, with_bias)
        mean, variance = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
        outputs = operation(inputs, weights, bias, mean, variance, 0.1, 1e-5)
        (outputs * torch.arange(outputs.numel()).view_as(outputs).cos()).sum().backward()
        gradients = [inputs.grad, weights.grad] + ([bias.grad] if bias is not None else [])
        results.append([outputs.detach(), mean, variance, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_finite_differences():
    inputs, weights, bias = _tensors(2, True)
    assert torch.autograd.gradcheck(
        lambda *tensors: MixedNorm.apply(*tensors, None, None, 0.1, 1e-5), (inputs, weights, bias)
    )


def test_inputs_without_gradient_get_none_but_the_mixture_does():
    inputs, weights, bias = _tensors(1, True)
    outputs = MixedNorm.apply(inputs.detach(), weights, bias, None, None, 0.1, 1e-5)
    outputs.square().sum().backward()
    assert inputs.grad is None
    assert weights.grad is not None
    assert bias.grad is not None


def test_half_precision_keeps_statistics_in_full():
    inputs, weights, bias = _tensors(1, True)
    mean, variance = torch.zeros(6), torch.ones(6)
    half = [tensor.detach().bfloat16() for tensor in (inputs, weights, bias)]
    outputs = MixedNorm.apply(*half, mean, variance, 1.0, 1e-5)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(mean.double(), half[0].double().mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
