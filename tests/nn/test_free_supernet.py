"""Free residuals in the supernet: both executions, fixed architectures, and what is collapsed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from free_nets import Twins, traced
from nets import images, perturbed
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.errors import ConfigError
from tas.nn.mixing import interpolation_matrix
from tas.nn.supernet import Supernet
from tas.nn.surgery import mask
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace

EXECUTIONS = ("compact", "dense")
HOWS = ("average", "linear", "none")


def supernet_of(execution: str, dtype: torch.dtype = torch.float64, **options) -> Supernet:
    model, graph = traced()
    space = SearchSpace.of(graph, ratios=(0.4, 0.7, 1.0))
    supernet = Supernet(copy.deepcopy(model).to(dtype), graph, space, execution=execution, **options).to(dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        supernet.logits.copy_(torch.randn(supernet.logits.shape, generator=draw))
        for name, parameter in supernet.named_parameters():
            if name.endswith((".scales", ".shifts")):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw).to(parameter))
    return supernet


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / one.detach().abs().max())


def architectures(space: SearchSpace, count: int):
    draw = torch.Generator().manual_seed(0)
    return [space.smallest, *(space.sample(draw) for _ in range(count))]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("options", [{}, {"fragments": 3}, {"depth_samples": "all"}])
def test_both_executions_agree_with_gradients(options, how):
    compact, dense = (supernet_of(kind, interpolation=how, **options).train() for kind in EXECUTIONS)
    inputs = images(dtype=torch.float64)
    for seed in range(3):
        outputs = []
        for supernet in (compact, dense):
            supernet.zero_grad()
            supernet.draw(1.5, torch.Generator().manual_seed(seed))
            outputs.append(supernet(inputs))
            (outputs[-1] * torch.linspace(-1, 1, outputs[-1].numel()).view_as(outputs[-1])).sum().backward()
        assert relative(*outputs) < 1e-10
        others = dict(dense.named_parameters())
        for name, parameter in compact.named_parameters():
            one, other = (p.grad if p.grad is not None else torch.zeros_like(p) for p in (parameter, others[name]))
            assert float((one - other).abs().max()) < 1e-9, name


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_fixed_derived_and_masked_are_one(execution):
    model, graph = traced()
    supernet = Supernet(model, graph, SearchSpace.of(graph), execution=execution)
    assert relative(model(images()), supernet(images())) < 1e-5
    for architecture in architectures(supernet.space, 6):
        small = derive(model, graph, architecture)
        wanted = small(images())
        with supernet.fixed(architecture):
            assert relative(wanted, supernet(images())) < 1e-5
        assert relative(wanted, mask(model, graph, architecture)(images())) < 1e-5
        assert relative(wanted, model(images())) > 1e-3  # the comparison can fail


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_collapsed_supernet_derives_what_it_ran(execution):
    supernet = supernet_of(execution).eval()
    inputs = images(dtype=torch.float64)
    for architecture in architectures(supernet.space, 3):
        supernet.draw(1.0, torch.Generator().manual_seed(0))
        with supernet.fixed(architecture):
            wanted = supernet(inputs)
        whole = supernet.collapse(architecture)
        assert type(whole.get_submodule("first.0.shortcut")) is nn.Identity
        assert whole.get_submodule("second.1").shortcut is None
        assert relative(wanted, derive(whole, supernet.graph, architecture)(inputs)) < 1e-10


def test_a_mixture_of_depths_is_the_weighted_sum_of_aligned_outputs():
    """Against the formula: Σ q_l · CWI(x^(l), widest), each x^(l) of the width its block has."""
    supernet = supernet_of("compact").eval()
    widths = {**supernet.space.largest.widths, "first.0.outer.0": 2, "first.1.outer.0": 4, "first.2.outer.0": 2}
    inputs, states = images(dtype=torch.float64), supernet._depths["first"]
    with supernet.fixed(Architecture(widths, {"first": 3, "second": 2})), torch.no_grad():
        x, parts = supernet.model.stem(inputs).relu(), []
        for place in range(3):
            x = supernet.model.first[place].module(x)
            parts.append(x)
        assert [part.shape[1] for part in parts] == [2, 4, 2]
        weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
        wanted = sum(
            weight * F.adaptive_avg_pool1d(part.movedim(1, -1).flatten(0, 2), 4).view(4, 8, 8, 4).movedim(-1, 1)
            for weight, part in zip(weights, parts, strict=True)
        )
        states.draw([0, 1, 2], weights)
        found = supernet.model.first(supernet.model.stem(inputs).relu())
    assert relative(wanted, found) < 1e-12


@pytest.mark.parametrize(("sources", "targets"), [(3, 7), (4, 4), (1, 5), (5, 6)])
def test_linear_interpolation_is_that_of_torch_and_none_adds_zeros(sources, targets):
    values = torch.randn(2, 3, sources, dtype=torch.float64)
    options = {"dtype": torch.float64}
    linear = interpolation_matrix(sources, targets, targets, sources, how="linear", **options)
    assert torch.allclose(values @ linear.T, F.interpolate(values, targets, mode="linear"))
    none = interpolation_matrix(sources, targets, targets, sources, how="none", **options)
    assert torch.equal(values @ none.T, F.pad(values, (0, targets - sources)))


def test_training_a_fixed_architecture_without_projections_is_training_the_derived_network():
    model, graph = traced()
    model = copy.deepcopy(model).double()
    space, inputs = SearchSpace.of(graph), images(dtype=torch.float64)
    for architecture in (space.smallest, space.largest):  # no two sizes of a stream differ
        for execution in EXECUTIONS:
            supernet = Supernet(model, graph, space, execution=execution).train()
            small = derive(model, graph, architecture).train()
            with supernet.fixed(architecture):
                assert relative(small(inputs), supernet(inputs)) < 1e-10


def test_a_stage_whose_output_is_a_result_stays_tied_and_says_so():
    model = perturbed(Twins())
    graph = trace(model, images(), residuals="free")
    assert not graph.exits
    assert [(item.path, item.reads, item.makes) for item in graph.shortcuts] == [("stage.0.shortcut", "stem.0", None)]
    assert any("keep one width" in item.reason and item.axis == "stage" for item in graph.frozen)
    smallest = SearchSpace.of(graph).smallest
    small = derive(model, graph, smallest)
    assert small(images())[1].shape[1] == 6
    assert sum(parameter.numel() for parameter in small.parameters()) == graph.params(smallest)


def test_the_open_size_behind_a_stage_is_a_tensor_in_dense_execution():
    supernet = supernet_of("dense", torch.float32)
    supernet.draw(1.0, torch.Generator().manual_seed(0))
    assert isinstance(supernet._sizes["first:exit"].active, Tensor)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ConfigError, match="interpolation is 'cubic'; it can be average or linear or none"):
        supernet_of("compact", interpolation="cubic")
