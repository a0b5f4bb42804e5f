"""Batch norm in rows of several pixels equals torch's own, where it is used at all."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tas.nn import few_channels
from tas.nn.few_channels import batch_norm
from tas.nn.memory_format import channels_last

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _small_inputs(monkeypatch):
    monkeypatch.setattr(few_channels, "LEAST_ELEMENTS", 0)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _images(channels, dtype=torch.float64, batch=4, size=4):
    images = 3 * torch.randn(batch, channels, size, size, dtype=dtype) + 20
    return images.contiguous(memory_format=LAST).requires_grad_()


def _is_in_rows(outputs):
    return type(outputs.grad_fn).__name__ == "_NormBackward"


@pytest.mark.parametrize("channels", [1, 3, 6, 13, 20])
@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize("has_statistics", [True, False])
def test_values_gradients_and_statistics_are_those_of_torch(channels, is_affine, has_statistics, threads):
    images, results = _images(channels), []
    weights = [torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2)] if is_affine else []
    for norm in (F.batch_norm, batch_norm):
        statistics = [torch.zeros(channels).double(), torch.ones(channels).double()] if has_statistics else [None] * 2
        outputs = norm(images, *statistics, *(weights or [None, None]), True, 0.3, 1e-3)
        loss = (outputs * torch.arange(outputs.numel()).view_as(outputs).cos()).sum()
        results.append([outputs.detach(), *torch.autograd.grad(loss, [images, *weights])])
        results[-1] += statistics if has_statistics else []
    assert _is_in_rows(outputs)
    assert outputs.is_contiguous(memory_format=LAST)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    weights = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    norm = lambda *tensors: batch_norm(tensors[0], None, None, *tensors[1:], True)  # noqa: E731
    assert torch.autograd.gradcheck(norm, (_images(3, batch=2), *weights))


def test_a_graph_that_is_kept_gives_the_same_gradient_again():
    images = _images(5)
    loss = batch_norm(images, None, None, None, None, True).pow(3).sum()
    first, again = (torch.autograd.grad(loss, images, retain_graph=True)[0] for _ in range(2))
    assert first.abs().max() > 1e-3
    torch.testing.assert_close(first, again)


def test_nothing_is_held_longer_than_autograd_holds_it():
    images = _images(5)
    outputs = batch_norm(images, None, None, None, None, True)
    outputs.sum().backward()
    assert outputs.grad_fn.node is None
    with pytest.raises(RuntimeError, match="second time"):
        outputs.sum().backward()


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Hardswish(inplace=True)])
def test_an_activation_may_change_the_result_in_place(activation):
    gradients = []
    for norm in (F.batch_norm, batch_norm):
        torch.manual_seed(0)
        images = _images(5)
        activation(norm(images, None, None, None, None, True)).pow(2).sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16])
def test_half_precision_is_as_exact_as_that_of_torch(weight_type):
    images = _images(5, torch.bfloat16, batch=8, size=16)
    weights = [torch.randn(5).to(weight_type).requires_grad_() for _ in range(2)]
    pull = torch.randn(images.shape)
    results = []
    for norm, kind in ((F.batch_norm, torch.float64), (F.batch_norm, None), (batch_norm, None)):
        given = [tensor.to(kind).detach().requires_grad_() for tensor in (images, *weights)]
        statistics = [torch.zeros_like(given[1]), torch.ones_like(given[1])]
        outputs = norm(given[0], *statistics, *given[1:], True, 1.0)
        assert outputs.dtype == given[0].dtype
        gradients = torch.autograd.grad((outputs * pull).sum(), given)
        results.append([outputs.detach(), *statistics, *gradients])
    for exact, theirs, ours in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        scale = exact.abs().max()
        assert (ours - exact).abs().max() / scale <= 2 * (theirs - exact).abs().max() / scale + 1e-5


@pytest.mark.parametrize(
    "make",
    [lambda: _images(32), lambda: _images(16), lambda: _images(5).detach().contiguous().requires_grad_(),
     lambda: _images(5, batch=1, size=3), lambda: torch.randn(4, 5, 16, requires_grad=True),
     lambda: torch.randn(64, 5, requires_grad=True)],
    ids=["many channels", "full vectors", "contiguous", "odd positions", "1-d", "no positions"],
)  # fmt: skip
def test_the_rest_is_left_to_torch(make):
    images = make()
    outputs = batch_norm(images, None, None, None, None, True)
    assert not _is_in_rows(outputs)
    torch.testing.assert_close(outputs, F.batch_norm(images, None, None, None, None, True))


def test_small_inputs_and_given_statistics_are_left_to_torch(monkeypatch):
    images, statistics = _images(5), [torch.ones(5).double(), torch.ones(5).double()]
    outputs = batch_norm(images, *statistics, None, None, False)
    torch.testing.assert_close(outputs, F.batch_norm(images, *statistics))
    monkeypatch.setattr(few_channels, "LEAST_ELEMENTS", images.numel() + 1)
    assert not _is_in_rows(batch_norm(images, None, None, None, None, True))


def test_errors_and_copies_leave_nothing_behind():
    model = nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3)).double()
    with pytest.raises(RuntimeError), channels_last(model, precision="no"):
        model[0](_images(6).detach())  # a norm of five channels
    with channels_last(model, precision="no"):
        copy = deepcopy(model)
        with pytest.raises(RuntimeError):
            model[0](_images(6).detach())
        assert not _is_in_rows(F.batch_norm(_images(5), None, None, training=True))
        assert _is_in_rows(copy[0](_images(5)))
    for norm in (model[0], copy[0].eval()):
        assert not _is_in_rows(norm(_images(5)))


def test_a_network_in_training_uses_it_and_has_the_same_gradients():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 4))
    model, images, gradients = model.double(), _images(3), []
    for mode in (channels_last(model, precision="no"), nullcontext()):
        with mode:
            normed = model[1](model[0](images))
            is_used = _is_in_rows(normed)
            gradients.append((is_used, torch.autograd.grad(model[2:](normed).square().sum(), model.parameters())))
    (is_used, ours), (is_still_used, theirs) = gradients
    assert is_used
    assert not is_still_used
    torch.testing.assert_close(ours, theirs)
