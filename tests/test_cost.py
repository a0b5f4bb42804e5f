from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tas.architecture import Architecture
from tas.cost import Cost, CostTable, Count, Kept, Term

WIDTHS = {"a": (1, 3, 4), "b": (2, 5), "c": (1, 2, 6, 7)}
DEPTHS = {"d": (1, 2, 3), "e": (1, 3)}

counts = st.builds(
    Count,
    st.integers(0, 9),
    st.lists(
        st.tuples(st.sampled_from(list(WIDTHS)), st.integers(1, 5)), max_size=3, unique_by=lambda pair: pair[0]
    ).map(tuple),
)
gates = st.builds(Kept, st.sampled_from(list(DEPTHS)), st.integers(0, 2), st.one_of(st.none(), st.integers(1, 3)))
sides = st.one_of(st.sampled_from(list(WIDTHS)), st.integers(1, 6))
terms = st.builds(
    Term,
    st.integers(1, 1000),
    st.lists(counts, max_size=3).map(tuple),
    st.lists(gates, max_size=3).map(tuple),
    st.one_of(st.none(), st.tuples(sides, sides)),
)
costs = st.lists(terms, min_size=1, max_size=5).map(lambda items: Cost(tuple(items)))


def enumerated() -> list[tuple[tuple[int, ...], Architecture]]:
    """Every choice of candidate indices with its architecture."""
    every = [*WIDTHS.values(), *DEPTHS.values()]
    found = []
    for choice in product(*[range(len(sizes)) for sizes in every]):
        chosen = [sizes[index] for sizes, index in zip(every, choice, strict=True)]
        found.append(
            (
                choice,
                Architecture(dict(zip(WIDTHS, chosen[:3], strict=True)), dict(zip(DEPTHS, chosen[3:], strict=True))),
            )
        )
    return found


SPACE = enumerated()


def probabilities(seed: int) -> torch.Tensor:
    rows = torch.zeros(5, 4, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    for row, sizes in enumerate([*WIDTHS.values(), *DEPTHS.values()]):
        rows[row, : len(sizes)] = torch.rand(len(sizes), generator=draw, dtype=torch.float64) + 0.05
    return rows / rows.sum(1, keepdim=True)


def test_a_count_is_its_constant_plus_each_width_times_its_channels():
    assert Count(5, (("a", 49), ("b", 1))).of({"a": 3, "b": 2}) == 5 + 49 * 3 + 2


def test_a_gated_term_is_paid_only_while_its_block_is_kept():
    term = Term(10, (Count(0, (("a", 1),)),), (Kept("d", 1),))
    assert [term.of(Architecture({"a": 3}, {"d": kept})) for kept in (1, 2, 3)] == [0, 30, 30]


def test_a_term_of_two_sizes_is_paid_only_where_they_differ():
    term = Term(10, (Count(0, (("a", 1),)), Count(0, (("b", 1),))), unequal=("a", "b"))
    assert [term.of(Architecture({"a": 3, "b": size})) for size in (2, 3, 5)] == [60, 0, 150]
    assert Term(10, unequal=("a", 3)).of(Architecture({"a": 3})) == 0


def test_a_term_can_ask_for_exactly_one_depth():
    term = Term(7, (), (Kept("d", 1, 2),))
    assert [term.of(Architecture({}, {"d": kept})) for kept in (1, 2, 3)] == [0, 7, 0]


def test_a_convolution_on_a_tied_stream_costs_the_square_of_its_width():
    channels = Count(0, (("a", 1),))
    assert Cost((Term(9, (channels, channels)),)).exact(Architecture({"a": 4})) == 9 * 4 * 4


@settings(deadline=None, max_examples=60)
@given(costs, st.integers(0, len(SPACE) - 1))
def test_the_monomials_add_up_to_the_terms(cost, place):
    architecture = SPACE[place][1]
    total = 0
    for (gates, powers, pair), coefficient in cost.monomials.items():
        if not all(gate.holds(architecture.depths[gate.depth]) for gate in gates):
            continue
        one, other = (architecture.widths.get(side, side) for side in pair[:2]) if pair else (1, 2)
        if one != other:
            factors = [architecture.widths[width] ** power for width, power in powers]
            factors += [one**pair.one_power, other**pair.other_power] if pair else []
            total += coefficient * prod(factors)
    assert total == cost.exact(architecture)


@settings(deadline=None, max_examples=40)
@given(costs)
def test_the_table_gives_the_exact_cost_of_every_architecture(cost):
    table = CostTable(cost, WIDTHS, DEPTHS)
    found = table.exact(np.array([choice for choice, _ in SPACE]))
    assert found.dtype == np.int64
    assert found.tolist() == [cost.exact(architecture) for _, architecture in SPACE]


@settings(deadline=None, max_examples=40)
@given(costs, st.integers(0, len(SPACE) - 3))
def test_what_a_change_of_one_choice_would_cost_is_exact(cost, place):
    table, counts = CostTable(cost, WIDTHS, DEPTHS), [len(sizes) for sizes in (*WIDTHS.values(), *DEPTHS.values())]
    choices = np.array([choice for choice, _ in SPACE[place : place + 3]])
    found = table.changed(choices)
    assert found.shape == (3, 5, 4)
    assert found.dtype == np.int64
    for choice, costs in zip(choices, found, strict=True):
        for row, count in enumerate(counts):
            changed = np.repeat(choice[None], count, axis=0)
            changed[:, row] = range(count)
            assert costs[row, :count].tolist() == table.exact(changed).tolist()


@settings(deadline=None, max_examples=40)
@given(costs, st.integers(0, 1000))
def test_the_expected_cost_is_the_mean_over_all_architectures(cost, seed):
    rows = probabilities(seed)
    mean = sum(
        float(torch.stack([rows[row, index] for row, index in enumerate(choice)]).prod()) * cost.exact(architecture)
        for choice, architecture in SPACE
    )
    found = CostTable(cost, WIDTHS, DEPTHS).expected(rows)
    assert found.item() == pytest.approx(mean, rel=1e-9, abs=1e-9)


def test_a_certain_choice_has_its_exact_cost_as_expectation_in_single_precision():
    cost = Cost((Term(3, (Count(1, (("a", 2),)), Count(0, (("a", 1), ("c", 1)))), (Kept("d", 1),)), Term(7)))
    for choice, architecture in SPACE[::7]:
        rows = torch.zeros(5, 4)
        rows[torch.arange(5), torch.tensor(choice)] = 1
        assert CostTable(cost, WIDTHS, DEPTHS).expected(rows).item() == pytest.approx(
            cost.exact(architecture), rel=1e-6
        )


def test_the_gradient_of_the_expected_cost_is_its_slope():
    cost = Cost(
        (
            Term(5, (Count(0, (("a", 1),)), Count(2, (("a", 1), ("b", 3))))),
            Term(4, (Count(0, (("c", 1),)),), (Kept("e", 2),)),
        )
    )
    table, rows = CostTable(cost, WIDTHS, DEPTHS), probabilities(3).requires_grad_()
    assert torch.autograd.gradcheck(table.expected, (rows,))


def test_costs_in_the_thousands_of_billions_stay_exact():
    cost = Cost((Term(10**12 + 1, (Count(0, (("a", 1),)),)),))
    assert CostTable(cost, {"a": (3,)}, {}).exact(np.array([[0]])).tolist() == [3 * (10**12 + 1)]


def test_a_graph_without_choices_has_a_constant_cost():
    table = CostTable(Cost((Term(6, (Count(7),)),)), {}, {})
    assert table.exact(np.zeros((2, 0), dtype=int)).tolist() == [42, 42]
    assert table.expected(torch.zeros(0, 1)).item() == 42
