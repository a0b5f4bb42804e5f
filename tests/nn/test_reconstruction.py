"""Layers are fitted to what they made in the full model; what cannot be fitted stays as it was inherited."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import images, perturbed
from torch import Tensor, nn
from toys import TinyNet

from tas.architecture import Architecture
from tas.nn.outputs import tensors_of
from tas.nn.reconstruction import RIDGE, _Goal, _read, _regression, reconstruct
from tas.nn.statistics import measure_statistics
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace


def half(graph) -> Architecture:
    space = SearchSpace.of(graph)
    return Architecture(
        {name: sizes[len(sizes) // 2] for name, sizes in space.widths.items()},
        {name: sizes[-1] for name, sizes in space.depths.items()},
    )


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([tensor.flatten().float() for tensor in tensors_of(model.eval()(inputs))])


def made(net: nn.Module, **options):
    """The full model, a derived one, the same fitted, and inputs that were looked at."""
    torch.manual_seed(0)
    model = perturbed(net).eval()
    graph = trace(model, images(), **options)
    inputs, architecture = torch.randn(64, *images().shape[1:]), half(graph)
    derived = derive(model, graph, architecture)
    fitted = reconstruct(copy.deepcopy(derived), model, graph, architecture, inputs)
    return model, derived, fitted, inputs


NAMES = [
    "plain", "without norm", "residual", "concat", "depthwise with multiplier", "flatten to linear", "padded shortcut",
    "chunked", "grouped", "transposed", "standardised", "convnext", "attention", "mixer", "one and three dimensions",
    "torch encoder layer", "lends to stages", "recurrent", "norm without statistics", "words",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_fitted_network_is_closer_to_the_full_one_also_on_other_inputs(name):
    model, derived, fitted, inputs = made((nets.ALL | nets.CUT_ALONE)[name]())
    calibrated = measure_statistics(derived, [(inputs, inputs)])
    for given in (inputs, torch.randn_like(inputs)):
        wanted = outputs(model, given)
        before, after = ((outputs(one, given) - wanted).norm() for one in (calibrated, fitted))
        assert after < 0.9 * before


def test_where_nothing_is_cut_nothing_changes():
    inputs = torch.randn(32, *images().shape[1:])
    model = measure_statistics(perturbed(nets.Residual()), [(inputs, inputs)])
    graph = trace(model, images())
    fitted = reconstruct(derive(model, graph, graph.full), model, graph, graph.full, inputs)
    for old, new in zip(model.parameters(), fitted.parameters(), strict=True):
        assert torch.allclose(old, new, rtol=1e-2, atol=1e-3)  # the variance of a batch is not quite that of a norm
    assert torch.allclose(outputs(fitted, inputs), outputs(model, inputs), rtol=1e-2, atol=1e-3)


def test_the_regression_is_that_of_ridge_regression_for_few_and_for_many_places():
    torch.manual_seed(0)
    for places in (5, 40):
        read, missing = torch.randn(places, 2, 9), torch.randn(places, 2, 3)
        found = _regression(read, missing)
        for group in range(2):
            x, y = (part[:, group].double().numpy() for part in (read, missing))
            ridge = np.sqrt(RIDGE * (x**2).mean() * places)
            wanted = np.linalg.lstsq(np.vstack([x, ridge * np.eye(9)]), np.vstack([y, np.zeros((9, 3))]), rcond=None)[0]
            assert np.allclose(found[group].T, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (3, 6)),
        (nn.Linear(6, 4), (3, 5, 6)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
        (nn.Conv1d(4, 6, 4, padding="same", dilation=2), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 7)),
        (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 4, 5, 7)),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 7)),
        (nn.Conv2d(4, 8, 3, padding="valid", groups=2), (2, 4, 5, 7)),
        (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"), (2, 4, 5, 7)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 5, 7)),
        (nn.Conv3d(4, 6, 3, padding=1, stride=(1, 2, 1)), (2, 4, 3, 5, 4)),
    ],
)
def test_what_is_read_in_a_place_makes_the_output_there(layer, shape):
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    found = layer(inputs)
    rows = (found if isinstance(layer, nn.Linear) else found.movedim(1, -1)).reshape(-1, layer.weight.shape[0])
    places = torch.randperm(len(rows))[:10]
    read = _read(layer, inputs, _Goal(len(rows), places, rows[places]))
    assert read is not None
    places_, groups, width = read.shape
    again = torch.einsum("pgi,goi->pgo", read, layer.weight.reshape(groups, -1, width)).reshape(places_, -1)
    assert torch.allclose(again + layer.bias, rows[places], atol=1e-5)
    assert _read(layer, inputs, _Goal(len(rows) + 1, places, rows[places])) is None  # positions were cut


class Renamed(nn.Conv2d):
    """Computes what its parent does, as torchvision's convolutions of videos do."""


@pytest.mark.parametrize(
    ("kind", "is_fitted"),
    [(Renamed, True), (nets.OwnConv, False), (nets.SamePadded, False), (nets.Standardised, False)],
)
def test_a_subclass_is_fitted_where_it_computes_what_its_parent_does(kind, is_fitted):
    torch.manual_seed(0)
    model = perturbed(nn.Sequential(*nets.conv_bn(3, 8), kind(8, 6, 3), nn.ReLU(), nets.head(6)))
    graph = trace(model.eval(), images())
    derived = derive(model, graph, half(graph))
    fitted = reconstruct(copy.deepcopy(derived), model, graph, half(graph), torch.randn(64, *images().shape[1:]))
    place = next(name for name, module in derived.named_modules() if type(module) is kind)
    assert torch.equal(derived.get_submodule(place).weight, fitted.get_submodule(place).weight) != is_fitted


@pytest.mark.parametrize("name", ["residual", "convnext"])
def test_layers_may_be_fitted_in_several_turns(name, monkeypatch):
    _, _, together, _ = made(nets.ALL[name]())
    monkeypatch.setattr("tas.nn.reconstruction.AT_ONCE", 2)
    _, _, in_turns, inputs = made(nets.ALL[name]())
    assert torch.allclose(outputs(together, inputs), outputs(in_turns, inputs), rtol=1e-3, atol=1e-3)


class Special(nn.Module):
    """Layers that must stay: called twice, frozen, two that may share a weight, and one whose weight is used again."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.frozen = nn.Conv2d(8, 8, 1).requires_grad_(False)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head, self.lends = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, values):
        values = torch.relu(self.stem(values))
        lent = F.linear(values.amax((2, 3)), self.lends.weight)
        values = torch.relu(self.twice(torch.relu(self.twice(values))))
        values = torch.relu(self.one(torch.relu(self.frozen(values)))) + self.other(values)
        values = values.mean((2, 3))
        return self.head(values) + self.lends(values) * lent.sigmoid()


def test_what_cannot_be_fitted_stays_as_it_was_inherited():
    torch.manual_seed(0)
    model = perturbed(Special()).eval()
    graph = trace(model, images())
    derived = derive(model, graph, half(graph))
    assert derived.stem.out_channels < 8
    derived.other.weight = derived.one.weight
    fitted = copy.deepcopy(derived)
    reconstruct(fitted, model, graph, half(graph), torch.randn(64, *images().shape[1:]))
    for name in ("twice", "frozen", "one", "other", "lends"):
        assert torch.equal(getattr(derived, name).weight, getattr(fitted, name).weight)
        assert torch.equal(getattr(derived, name).bias, getattr(fitted, name).bias)
    assert fitted.one.weight is fitted.other.weight
    assert not torch.equal(derived.head.weight, fitted.head.weight)


def test_a_layer_makes_what_it_made_before_a_hook_of_the_user_changed_it():
    model = perturbed(nets.WithoutNorm())
    graph = trace(model, images())
    for layer in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        layer.register_forward_hook(lambda _module, _inputs, outputs: 3 * outputs + 1)
    inputs = torch.randn(32, *images().shape[1:])
    fitted = reconstruct(derive(model, graph, graph.full), model, graph, graph.full, inputs)
    for old, new in zip(model.parameters(), fitted.parameters(), strict=True):
        assert torch.allclose(old, new, rtol=1e-3, atol=1e-4)


def test_few_samples_make_nothing_worse():
    torch.manual_seed(0)
    model = perturbed(
        nn.Sequential(*nets.conv_bn(3, 8), nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 5))
    )
    graph = trace(model.eval(), images())
    inputs, unseen = torch.randn(2, 24, 3, 8, 8)
    derived = derive(model, graph, half(graph))
    fitted = reconstruct(copy.deepcopy(derived), model, graph, half(graph), inputs)
    calibrated = measure_statistics(derived, [(inputs, inputs)])
    wanted = outputs(model, unseen)
    assert (outputs(fitted, unseen) - wanted).norm() < 1.02 * (outputs(calibrated, unseen) - wanted).norm()


def test_the_full_model_and_random_numbers_are_as_before():
    torch.manual_seed(0)
    model = perturbed(TinyNet()).train()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    architecture, before, numbers = half(graph), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    inputs = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = [
        reconstruct(derive(model, graph, architecture), model, graph, architecture, inputs, seed=seed).state_dict()
        for seed in (0, 0)
    ]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())  # it repeats itself
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_inputs_that_are_not_finite_change_no_weight():
    model = perturbed(TinyNet()).eval()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    inputs = torch.full((8, 3, 8, 8), torch.nan)
    derived = derive(model, graph, half(graph))
    fitted = reconstruct(copy.deepcopy(derived), model, graph, half(graph), inputs)
    assert all(torch.equal(one, other) for one, other in zip(derived.parameters(), fitted.parameters(), strict=True))


def test_projections_of_free_residuals_pass_on_what_they_align():
    model, derived, fitted, inputs = made(TinyNet(), residuals="free")
    calibrated = measure_statistics(derived, [(inputs, inputs)])
    wanted = outputs(model, inputs)
    assert (outputs(fitted, inputs) - wanted).norm() < 0.7 * (outputs(calibrated, inputs) - wanted).norm()


def test_every_layer_that_is_fitted_is_told(monkeypatch):
    told = []

    @contextmanager
    def bar(title, total):
        told.append((title, total))
        yield SimpleNamespace(advance=told.append)

    monkeypatch.setattr("tas.nn.reconstruction.progress_bar", bar)
    model, *_ = made(nets.Residual())
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert told[0] == ("fit", len(layers))
    assert sorted(told[1:]) == sorted(layers)
