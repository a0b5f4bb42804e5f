"""A latency as a budget, under synthetic tables: no clock is read here."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from tas.architecture import Architecture
from tas.budget import Budget, cost_text
from tas.cheapest import cheapest
from tas.cost import CostTable, Count, Term
from tas.decode import decode
from tas.errors import BudgetError
from tas.graph import Depth, Graph, Layer, Width
from tas.latency import Latency, Part
from tas.lookup import Lookup
from tas.profile import latency_change
from tas.space import SearchSpace

A, B = (2, 4, 8), (3, 6)


def a_graph(seed: int = 0) -> Graph:
    """Two widths and a depth; the times are random, so a smaller size may take longer."""
    draw = np.random.default_rng(seed)

    def values(rows: int, columns: int):
        return tuple(map(tuple, draw.integers(1, 1000, (rows, columns)).tolist()))

    parts = (
        Part("one", None, Lookup(("a", 0), (A, (0,)), values(3, 1))),
        Part("two", ("d", 1), Lookup(("a", "b"), (A, B), values(3, 2))),
        Part("three", None, Lookup(("b", 7), ((3, 6), (7,)), values(2, 1))),
    )
    layers = (Layer("one", "convolution", (), ((1, (Count(0, (("a", 1),)),)),)),)
    graph = Graph(
        (Width("a", 8, ("one",)), Width("b", 6, ("two",))), (Depth("d", ("d.0", "d.1")),), layers,
        latency=Latency(parts, 50, "a processor", 1, 1, 1.0, 0.0),
    )  # fmt: skip
    as_predicted = graph.cost("latency").exact(graph.full) / 1e6
    return replace(graph, latency=replace(graph.latency, full_ms=as_predicted))


def test_what_a_share_is_of_was_measured():
    graph = a_graph()
    slower = replace(graph, latency=replace(graph.latency, full_ms=0.02))  # as a fit for a budget may have it
    assert slower.full_cost("latency") == 20_000 != graph.full_cost("latency")
    assert Budget(latency="50%").limits(slower) == {"latency": 10_000}
    assert Budget(latency="5us").tightness(slower) == 0.25
    assert (slower.full_cost("macs"), slower.full_cost("params")) == (slower.macs(), slower.params())


SPACE = SearchSpace({"a": A, "b": B}, {"d": (1, 2)})


def every(space: SearchSpace):
    for a, b, d in product(*space.widths.values(), *space.depths.values()):
        yield Architecture({"a": a, "b": b}, {"d": d})


def test_a_lookup_is_its_grid_and_bilinear_between_and_constant_beyond():
    found = Lookup(("a", "b"), ((2, 4), (10, 20)), ((0, 100), (40, 300)))
    assert found.table([2, 4], [10, 20]).tolist() == [[0, 100], [40, 300]]
    assert found.table([3], [15]).tolist() == [[110]]  # (0 + 100 + 40 + 300) / 4
    assert found.table([1, 9], [5, 99]).tolist() == [[0, 100], [40, 300]]


def test_an_architecture_takes_the_sum_of_the_layers_it_keeps_and_the_rest():
    graph = a_graph()
    one, two, three = (part.lookup.values for part in graph.latency.parts)
    cost = graph.cost("latency")
    assert cost.exact(Architecture({"a": 4, "b": 6}, {"d": 2})) == one[1][0] + two[1][1] + three[1][0] + 50
    assert cost.exact(Architecture({"a": 4, "b": 6}, {"d": 1})) == one[1][0] + three[1][0] + 50


@pytest.mark.parametrize("seed", range(3))
def test_a_table_agrees_with_single_architectures_and_the_expectation_with_enumeration(seed):
    cost = a_graph(seed).cost("latency")
    table = CostTable(cost, SPACE.widths, SPACE.depths)
    choices = np.array(list(product(range(3), range(2), range(2))))
    exact = table.exact(choices)
    assert exact.tolist() == [cost.exact(architecture) for architecture in every(SPACE)]
    known = {tuple(choice): value for choice, value in zip(choices.tolist(), exact.tolist(), strict=True)}
    for (a, b, d), changed in zip(known, table.changed(choices).tolist(), strict=True):
        assert changed[0] == [known[other, b, d] for other in range(3)]
        assert changed[1][:2] == [known[a, other, d] for other in range(2)]
        assert changed[2][:2] == [known[a, b, other] for other in range(2)]
    rows = torch.rand(3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    shares = rows * torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    shares = shares / shares.sum(1, keepdim=True)
    weights = torch.stack([torch.stack([shares[row, i] for row, i in enumerate(choice)]).prod() for choice in choices])
    expected = table.expected(shares)
    wanted = (weights * torch.tensor(exact)).sum()
    assert expected.item() == pytest.approx(wanted.item(), rel=1e-12)
    found, other = (torch.autograd.grad(value, rows, retain_graph=True)[0] for value in (expected, wanted))
    torch.testing.assert_close(found, other)


@pytest.mark.parametrize("seed", range(8))
def test_decoding_holds_every_bound_and_the_cheapest_is_found(seed):
    graph, draw = a_graph(seed), np.random.default_rng(seed)
    costs = {architecture: graph.cost("latency").exact(architecture) for architecture in every(SPACE)}
    assert graph.cost("latency").exact(cheapest(graph, SPACE, "latency")) == min(costs.values())
    scores = {"a": draw.normal(size=3), "b": draw.normal(size=2), "d": draw.normal(size=2)}
    full = costs[graph.full]
    limit = (min(cost for a, cost in costs.items() if graph.macs(a) <= 4) + full) // 2
    limit = min(full, max(limit, min(cost for a, cost in costs.items() if graph.macs(a) <= 4)))
    budget = Budget(latency=limit / full, macs="60%")
    if limit == full < min(cost for a, cost in costs.items() if graph.macs(a) <= 4):
        pytest.skip("nothing holds both")
    found = decode(scores, graph, SPACE, budget)
    allowed = [a for a, cost in costs.items() if cost <= budget.limits(graph)["latency"] and graph.macs(a) <= 4]
    best = max(allowed, key=lambda a: sum(
        scores[n][s.index({**a.widths, **a.depths}[n])] for n, s in (("a", A), ("b", B), ("d", (1, 2)))
    ))  # fmt: skip
    assert budget.holds(graph, found)
    assert found == best


@pytest.mark.parametrize(
    ("amount", "nanoseconds"),
    [("3ms", 3e6), ("3 MS", 3e6), ("2500us", 2.5e6), ("0.001 s", 1e6), ("1e-3s", 1e6), ("5\u00b5s", 5e3)],
)
def test_a_latency_is_a_time_with_a_unit(amount, nanoseconds):
    graph = a_graph()
    graph = Graph(graph.widths, graph.depths, graph.layers, latency=Latency((), 10**9, "", 1, 1, 1e3, 0.0))
    assert Budget(latency=amount).limits(graph) == {"latency": nanoseconds}
    assert Budget(latency="60%").limits(graph) == Budget(latency=0.6).limits(graph) == {"latency": 6e8}


def test_of_a_latency_the_error_of_its_prediction_is_kept_back():
    graph = a_graph()
    graph = Graph(graph.widths, graph.depths, graph.layers, latency=Latency((), 10**9, "", 1, 1, 1e3, 0.05))
    assert Budget(latency="63%", macs="60%").limits(graph) == {"latency": 6e8, "macs": 4}
    noisy = replace(graph, latency=replace(graph.latency, error=0.5))
    assert Budget(latency="550ms").limits(noisy) == {"latency": 5e8}
    assert Budget(latency="880ms").loosened(0.5, noisy).limits(noisy) == {"latency": math.floor(9.4e8 / 1.1)}, "once"


def test_a_time_alone_is_a_latency():
    assert Budget.of("3ms") == Budget(latency="3ms")


@pytest.mark.parametrize("amount", ["fast", "3h", "3M", ""])
def test_text_that_is_no_time_is_refused(amount):
    with pytest.raises(BudgetError, match="budget latency .* is not understood; write 60%, 0.6 or 3ms"):
        Budget(latency=amount)


@pytest.mark.parametrize("amount", ["30", 30, 2.5])
def test_a_time_without_a_unit_is_refused(amount):
    with pytest.raises(BudgetError, match="budget latency .* has no unit; write 60%, 0.6 or 3ms"):
        Budget(latency=amount)


def test_a_latency_that_was_not_measured_says_what_to_do():
    graph = Graph(a_graph().widths, a_graph().depths, a_graph().layers)
    with pytest.raises(BudgetError, match=r"give the graph to tas.with_latency first"):
        Budget(latency="60%").limits(graph)
    assert Budget(macs="60%").limits(graph) == {"macs": 4}


def test_an_unreachable_latency_names_the_smallest():
    graph = a_graph()
    least = min(graph.cost("latency").exact(a) for a in every(SPACE))
    with pytest.raises(BudgetError, match=f"takes 0.000 ms or less; the smallest has {least / 1e6:.3f} ms"):
        Budget(latency="0.05us").require_reachable(graph, SPACE)
    with pytest.raises(BudgetError, match="budget latency 3.000 ms is more than the full model's 0.00"):
        Budget(latency="3ms").limits(graph)


def test_a_graph_keeps_its_latency():
    graph = a_graph()
    assert Graph.from_json(graph.to_json()) == graph
    assert "latency" not in (text := json.loads(Graph(graph.widths, graph.depths, graph.layers).to_json())) or (
        text["latency"] is None
    )


def test_a_lookup_has_no_other_factor():
    with pytest.raises(AssertionError):
        Term(1, (Count(3),), lookup=Lookup((0, 0), ((0,), (0,)), ((1,),)))


def test_costs_in_words():
    assert cost_text(3_100_000, "latency") == "3.100 ms"
    assert cost_text(1234, "macs") == "1,234 macs"


@pytest.mark.parametrize(
    ("full", "pruned", "words"),
    [((10, 1), (5, 0.5), "50.0 %"), ((10, 1), (9.5, 0.5), "no gain: 95.0 %, within the spread of 1.000 ms"),
     ((10, 0.1), (12, 0.5), "120.0 %")],
)  # fmt: skip
def test_a_difference_within_the_spread_is_no_gain(full, pruned, words):
    one, other = ({"latency_ms": median, "latency_spread_ms": spread} for median, spread in (full, pruned))
    assert latency_change(one, other) == words
