from itertools import product

import numpy as np
import pytest
import torch
from free_nets import traced
from nets import images

from tas.architecture import Architecture
from tas.budget import Budget
from tas.cheapest import cheapest
from tas.cost import CostTable
from tas.decode import decode
from tas.errors import BudgetError
from tas.graph import Graph
from tas.pipeline.derive import derive
from tas.pipeline.measure import count_macs
from tas.space import SearchSpace
from tas.streams import Exit, streams

STREAM = ("stem.0", "first.0.outer.0", "first.1.outer.0", "first.2.outer.0")


def space_of(**candidates) -> SearchSpace:
    """Few candidates, so that all architectures can be enumerated; every other width keeps its full size."""
    graph = traced()[1]
    given = {name: tuple(candidates.get(name.replace(".", "_"), (size,))) for name, size in graph.full.widths.items()}
    return SearchSpace(given, {"first": (1, 2, 3), "second": (1, 2)})


MIXED = space_of(
    stem_0=(2, 6), first_0_outer_0=(3, 6), first_1_outer_0=(2, 4, 6), first_2_outer_0=(1, 6), second_1_outer_0=(5, 8),
    second_0_inner_0=(2, 5),
)  # fmt: skip


def every(space: SearchSpace) -> list[tuple[tuple[int, ...], Architecture]]:
    rows, found = [*space.widths.values(), *space.depths.values()], []
    for choice in product(*[range(len(row)) for row in rows]):
        sizes = [row[index] for row, index in zip(rows, choice, strict=True)]
        count = len(space.widths)
        widths = dict(zip(space.widths, sizes[:count], strict=True))
        found.append((choice, Architecture(widths, dict(zip(space.depths, sizes[count:], strict=True)))))
    return found


def test_the_exit_of_a_stage_is_as_wide_as_the_last_kept_block():
    graph = traced()[1]
    widths = {**graph.full.widths, **dict(zip(STREAM, (6, 2, 3, 4), strict=True))}
    assert [graph.sizes(Architecture(widths, {"first": kept, "second": 2}))["first:exit"] for kept in (1, 2, 3)] == [
        2, 3, 4,
    ]  # fmt: skip


def test_streams_are_what_shortcuts_and_exits_connect():
    graph = traced()[1]
    assert {frozenset((*STREAM, "first:exit")), frozenset(("second.0.outer.0", "second.1.outer.0", "second:exit"))} == {
        *graph.streams
    }
    assert streams([], [Exit("d:exit", "d", ("a", None), 3)]) == [frozenset(("d:exit", "a", None))]


def test_exact_costs_are_those_of_the_derived_network():
    model, graph = traced()
    for _, architecture in every(MIXED)[::37]:
        small = derive(model, graph, architecture)
        assert graph.macs(architecture) == count_macs(small, images())
        assert graph.params(architecture) == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_table_and_expectation_agree_with_enumeration(quantity):
    graph, choices = traced()[1], every(MIXED)
    table = CostTable(graph.cost(quantity), MIXED.widths, MIXED.depths)
    exact = table.exact(np.array([choice for choice, _ in choices]))
    assert exact.tolist() == [graph.cost(quantity).exact(architecture) for _, architecture in choices]
    rows = torch.zeros(len(choices[0][0]), 3, dtype=torch.float64)
    for row, sizes in enumerate([*MIXED.widths.values(), *MIXED.depths.values()]):
        rows[row, : len(sizes)] = torch.linspace(1, 2, len(sizes)) * (1 + row % 3)
    rows /= rows.sum(1, keepdim=True)
    chances = torch.stack([rows[range(len(choice)), choice].prod() for choice, _ in choices])
    assert float(table.expected(rows)) == pytest.approx(float(chances @ torch.as_tensor(exact).double()), rel=1e-12)


def test_the_graph_reads_back_from_json():
    graph = traced()[1]
    assert Graph.from_json(graph.to_json()) == graph
    assert graph.shortcuts
    assert graph.exits


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_the_cheapest_architecture_need_not_be_the_smallest(quantity):
    graph = traced()[1]
    # the second block can only be 2 or 6 wide, its neighbours 3 or 6: projections everywhere, or 6 channels
    space = space_of(stem_0=(6,), first_0_outer_0=(5, 6), first_1_outer_0=(6,), first_2_outer_0=(4, 6))
    costs = [graph.cost(quantity).exact(architecture) for _, architecture in every(space)]
    found = graph.cost(quantity).exact(cheapest(graph, space, quantity))
    assert found == min(costs) < graph.cost(quantity).exact(Architecture(space.smallest.widths, graph.full.depths))
    Budget(**{quantity: found}).require_reachable(graph, space)
    with pytest.raises(BudgetError, match=f"the smallest has {found:,}"):
        Budget(**{quantity: found - 1}).require_reachable(graph, space)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_decoding_stays_near_the_best_architecture_under_the_budget(seed, share):
    graph, draw = traced()[1], torch.Generator().manual_seed(seed)
    rows = {**MIXED.widths, **MIXED.depths}
    scores = {name: torch.randn(len(sizes), generator=draw).tolist() for name, sizes in rows.items()}

    def score(architecture: Architecture) -> float:
        sizes = {**architecture.widths, **architecture.depths}
        return sum(scores[name][rows[name].index(size)] for name, size in sizes.items())

    limit = int(share * graph.macs())
    best = max(score(architecture) for _, architecture in every(MIXED) if graph.macs(architecture) <= limit)
    found = decode(scores, graph, MIXED, Budget(macs=limit))
    assert graph.macs(found) <= limit
    assert score(found) >= best - 0.3
