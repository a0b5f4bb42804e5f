"""Architectures by rule or chance: the rule is what it says, the budget holds, and is used."""

import numpy as np
import pytest
import torch
from toys import TinyNet

import tas
from tas.budget import share_used
from tas.errors import BudgetError
from tas.fit import USED, Fitter, above_threshold, uniform, widths_alone
from tas.graph import Graph
from tas.models import load


@pytest.fixture(scope="module")
def tiny() -> Graph:
    return tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return tas.trace(load("cifar_resnet:20", num_classes=10), torch.zeros(1, 3, 16, 16))


def rounded_down(wanted: dict[str, float], space: tas.SearchSpace) -> dict[str, int]:
    return {
        name: max([size for size in sizes if size <= wanted[name] + 1e-6], default=sizes[0])
        for name, sizes in space.widths.items()
    }


def grown(found: tas.Architecture, space: tas.SearchSpace) -> list[tas.Architecture]:
    """Every architecture in which one width has its next candidate."""
    return [
        tas.Architecture(
            {**found.widths, name: next(size for size in sizes if size > found.widths[name])}, found.depths
        )
        for name, sizes in space.widths.items()
        if found.widths[name] < sizes[-1]
    ]


def assert_is_used_from(base: tas.Architecture, found: tas.Architecture, graph, space, bound):
    """The budget is used: what is found holds all of the base, and no width could be a candidate larger."""
    assert bound.holds(graph, found)
    assert found.depths == base.depths
    assert all(found.widths[name] >= size for name, size in base.widths.items())
    assert not any(bound.holds(graph, other) for other in grown(found, space))


def test_uniform_keeps_five_of_eight_and_six_in_the_last_layers(tiny):
    space, bound = tas.SearchSpace.of(tiny), tas.Budget(macs="50%")
    found = uniform(tiny, space, bound)
    five = tas.Architecture(dict.fromkeys(found.widths, 5), {"blocks": 3})
    six = tas.Architecture(dict.fromkeys(found.widths, 6), {"blocks": 3})
    assert tiny.macs(five) <= 0.5 * tiny.macs() < tiny.macs(six)
    assert_is_used_from(five, found, tiny, space, bound)
    assert list(found.widths.values()) == sorted(found.widths.values())


@pytest.mark.parametrize("budget", [{"macs": "35%"}, {"macs": "50%"}, {"params": "60%"}, {"macs": 0.7, "params": 0.5}])
def test_uniform_starts_from_the_largest_of_all_single_ratios_that_fit(resnet, budget):
    space, bound = tas.SearchSpace.of(resnet, round_to=2), tas.Budget.of(budget)
    found = uniform(resnet, space, bound)
    fitting = []
    for ratio in np.linspace(0.01, 1, 991):
        widths = rounded_down({name: ratio * size for name, size in resnet.full.widths.items()}, space)
        architecture = tas.Architecture(widths, resnet.full.depths)
        if bound.holds(resnet, architecture):
            fitting.append(architecture)
    assert_is_used_from(fitting[-1], found, resnet, space, bound)
    assert found in space


def test_a_threshold_removes_what_is_least_important_until_the_budget_holds(resnet):
    space, bound = tas.SearchSpace.of(resnet), tas.Budget(macs="50%")
    draw = np.random.default_rng(0)
    importance = {name: draw.random(size) ** 3 for name, size in resnet.full.widths.items()}
    found = above_threshold(importance, resnet, space, bound)
    for threshold in sorted(np.concatenate(list(importance.values()))):
        wanted = {name: float(sum(value >= threshold for value in values)) for name, values in importance.items()}
        architecture = tas.Architecture(rounded_down(wanted, space), resnet.full.depths)
        if bound.holds(resnet, architecture):
            break
    assert_is_used_from(architecture, found, resnet, space, bound)
    assert found in space


def test_what_a_threshold_leaves_goes_to_the_most_important_channels_that_were_cut(tiny):
    names = list(tiny.full.widths)
    importance = {name: np.linspace(2, 1, 8) - 0.01 * place for place, name in enumerate(names)}
    found = above_threshold(importance, tiny, tas.SearchSpace.of(tiny), tas.Budget(macs="50%"))
    assert list(found.widths.values()) == sorted(found.widths.values(), reverse=True)
    backwards = {name: np.linspace(2, 1, 8) + 0.01 * place for place, name in enumerate(names)}
    found = above_threshold(backwards, tiny, tas.SearchSpace.of(tiny), tas.Budget(macs="50%"))
    assert list(found.widths.values()) == sorted(found.widths.values())


def test_equal_importance_everywhere_still_fits(resnet):
    importance = {name: np.ones(size) for name, size in resnet.full.widths.items()}
    space, bound = tas.SearchSpace.of(resnet), tas.Budget(macs="50%")
    assert_is_used_from(
        widths_alone(space).smallest, above_threshold(importance, resnet, space, bound), resnet, space, bound
    )


def test_a_budget_that_needs_fewer_blocks_is_refused_with_the_reason(tiny):
    space = tas.SearchSpace.of(tiny, ratios=(0.9,))
    for find in (uniform, lambda *given: above_threshold({name: np.ones(8) for name in tiny.full.widths}, *given)):
        with pytest.raises(BudgetError, match="cuts channels and keeps every block: no architecture in this space"):
            find(tiny, space, tas.Budget(macs="50%"))


def test_a_model_without_widths_has_one_architecture():
    graph = tas.trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)), torch.zeros(1, 3, 4, 4))
    assert uniform(graph, tas.SearchSpace.of(graph), tas.Budget(macs=1.0)) == graph.full


@pytest.mark.parametrize("budget", [{"macs": "15%"}, {"macs": "50%"}, {"params": "30%"}, {"macs": 0.6, "params": 0.4}])
def test_any_choice_is_moved_to_the_budget_and_uses_it(resnet, budget):
    bound, space = tas.Budget.of(budget), tas.SearchSpace.of(resnet)
    fitter, generator = Fitter(resnet, space, bound), torch.Generator().manual_seed(0)
    counts = [len(sizes) for sizes in fitter.space.choices.values()]
    starts = [[0] * len(counts), [count - 1 for count in counts]]
    starts += [[int(torch.randint(count, (), generator=generator)) for count in counts] for _ in range(20)]
    for seed, picks in enumerate(starts):
        found = fitter.fitted(picks, seed)
        assert found in space
        assert bound.holds(resnet, found)
        assert share_used(resnet, found, fitter.limits) >= USED
        assert not any(bound.holds(resnet, other) for other in grown(found, space))
        assert found == fitter.fitted(picks, seed)


def test_a_choice_that_fits_and_uses_the_budget_stays_as_it_is(tiny):
    fitter = Fitter(tiny, tas.SearchSpace.of(tiny), tas.Budget(macs=1.0))
    assert fitter.fitted([len(sizes) - 1 for sizes in fitter.space.choices.values()], 0) == tiny.full


def test_what_cannot_reach_the_budget_is_still_given_back(tiny):
    space = tas.SearchSpace.of(tiny, choose="depth")
    bound = tas.Budget(macs="60%")  # one block costs 37 %, two 69 %
    found = Fitter(tiny, space, bound).fitted([0] * len(space.widths) + [2], 0)
    assert found.depths == {"blocks": 1}
    assert bound.holds(tiny, found)
