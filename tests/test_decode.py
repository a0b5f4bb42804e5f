import random
from itertools import product

import pytest

from tas.architecture import Architecture
from tas.budget import Budget
from tas.cost import Count
from tas.decode import decode
from tas.errors import BudgetError
from tas.graph import Depth, Graph, Layer, Parameter, Run, Width
from tas.space import SearchSpace


def problem(seed: int):
    """A chain of layers with a tied width, a depth, two quantities; random sizes and scores."""
    draw = random.Random(seed)
    names = [f"w{i}" for i in range(draw.randint(2, 5))]
    sizes = {name: draw.choice((8, 16, 24, 40)) for name in names}
    layers = []
    for place, (one, other) in enumerate(zip([names[0], *names], [*names, names[0]], strict=False)):
        weight = Parameter(
            f"l{place}.weight", (sizes[other], sizes[one], draw.choice((1, 9))),
            ((Run(other, 0, sizes[other]),), (Run(one, 0, sizes[one]),), None),
        )  # fmt: skip
        factors = tuple(Count(draw.choice((0, 3)), ((name, 1),)) for name in (one, other))
        gate = ("d", draw.randint(1, 2)) if draw.random() < 0.4 else None
        layers.append(Layer(f"l{place}", "convolution", (weight,), ((draw.randint(1, 400), factors),), gate))
    graph = Graph(tuple(Width(n, s, ()) for n, s in sizes.items()), (Depth("d", ("0", "1", "2")),), tuple(layers))
    space = SearchSpace(
        {name: tuple(sorted({*draw.sample(range(1, size), draw.randint(1, 4)), size})) for name, size in sizes.items()},
        {"d": (1, 2, 3)},
    )
    spread = draw.choice((0.01, 1.0, 5.0))
    scores = {n: [draw.gauss(0, spread) for _ in c] for n, c in (*space.widths.items(), *space.depths.items())}
    quantity = draw.choice((("macs",), ("params",), ("macs", "params")))
    shares = {}
    for name in quantity:
        least = graph.cost(name).exact(space.smallest) / graph.cost(name).exact(graph.full)
        shares[name] = least + (1 - least) * draw.uniform(0.02, 0.9)
    return graph, space, scores, Budget(**shares)


def merit(scores, space, architecture) -> float:
    chosen = {**architecture.widths, **architecture.depths}
    return sum(scores[n][sizes.index(chosen[n])] for n, sizes in (*space.widths.items(), *space.depths.items()))


def every_architecture(space):
    for widths in product(*space.widths.values()):
        for depths in product(*space.depths.values()):
            yield Architecture(
                dict(zip(space.widths, widths, strict=True)), dict(zip(space.depths, depths, strict=True))
            )


def test_the_best_architecture_under_the_budget_is_found_as_enumeration_finds_it():
    missed, cases = [], 100
    for seed in range(cases):
        graph, space, scores, budget = problem(seed)
        found = decode(scores, graph, space, budget)
        assert found in space
        assert budget.holds(graph, found)
        best = max(merit(scores, space, a) for a in every_architecture(space) if budget.holds(graph, a))
        gap = best - merit(scores, space, found)
        assert gap > -1e-9
        if gap > 1e-9:
            missed.append(gap)
    assert len(missed) <= 0.05 * cases, missed


def test_what_fits_is_taken_as_it_is():
    graph, space, scores, _ = problem(1)
    likely = {n: sizes[scores[n].index(max(scores[n]))] for n, sizes in (*space.widths.items(), *space.depths.items())}
    found = decode(scores, graph, space, Budget(macs=1.0))
    assert {**found.widths, **found.depths} == likely


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_cost_itself_is_a_budget_that_can_be_held(seed):
    graph, space, scores, _ = problem(seed)
    least = graph.macs(space.smallest)
    found = decode(scores, graph, space, Budget(macs=least))
    assert graph.macs(found) == least


@pytest.mark.parametrize("seed", range(5))
def test_an_impossible_budget_names_the_smallest_reachable_cost(seed):
    graph, space, scores, _ = problem(seed)
    least = graph.macs(space.smallest)
    with pytest.raises(BudgetError, match=f"the smallest has {least:,}"):
        decode(scores, graph, space, Budget(macs=least - 1))


def test_a_budget_holds_on_a_real_net_whatever_the_scores(named):
    draw = random.Random(0)
    for share in (0.4,):
        choices = (*named.space.widths.items(), *named.space.depths.items())
        scores = {name: [draw.gauss(place, 1) for place in range(len(sizes))] for name, sizes in choices}
        budget = Budget(macs=share)
        found = decode(scores, named.graph, named.space, budget)
        assert found in named.space
        assert named.graph.macs(found) <= share * named.graph.macs()
        assert named.graph.macs(found) > 0.95 * share * named.graph.macs()  # larger is better, so nothing is given away


def test_without_choices_the_model_stays_as_it_is():
    layer = Layer("l", "linear", (Parameter("l.weight", (2, 3), (None, None)),), ((6, ()),))
    graph = Graph((), (), (layer,))
    assert decode({}, graph, SearchSpace.of(graph), Budget(macs=1.0)) == graph.full


def test_scores_that_do_not_fit_the_space_are_refused():
    graph, space, scores, budget = problem(0)
    with pytest.raises(ValueError, match="scores of 'd' must be one number for each of its 3 candidates"):
        decode({**scores, "d": [0.0]}, graph, space, budget)
    with pytest.raises(ValueError, match="scores of 'w0'"):
        decode({"d": scores["d"]}, graph, space, budget)
