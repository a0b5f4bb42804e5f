import pytest

from tas.architecture import Architecture
from tas.budget import Budget, Budgets
from tas.cost import Count
from tas.errors import BudgetError
from tas.graph import Graph, Layer, Parameter, Run, Width
from tas.space import SearchSpace

# 1000 macs and 100 parameters per channel, ten channels
WEIGHT = Parameter("conv.weight", (10, 100), ((Run("conv", 0, 10),), None))
GRAPH = Graph(
    (Width("conv", 10, ("conv",)),),
    (),
    (Layer("conv", "convolution", (WEIGHT,), ((1000, (Count(0, (("conv", 1),)),)),)),),
)


@pytest.mark.parametrize(
    ("amount", "macs"),
    [
        ("50%", 5000), (0.5, 5000), ("0.5", 5000), ("0.3", 3000), ("33.33 %", 3333), (1, 10000),
        ("100%", 10000), (1.0, 10000),
        (4000, 4000), (4e3, 4000), ("4e3", 4000), ("4k", 4000), ("0.004M", 4000),
        ("0.000004g", 4000), (" 4 K ", 4000), ("2.5", 2),
    ],
)  # fmt: skip
def test_an_amount_is_a_share_up_to_one_and_absolute_above(amount, macs):
    assert Budget.of(amount).limits(GRAPH) == {"macs": macs}


@pytest.mark.parametrize("share", [i / 100 for i in range(1, 101)])
def test_a_share_loses_nothing_to_rounding(share):
    assert Budget(macs=share).limits(GRAPH)["macs"] == round(share * 10000)


def test_several_bounds_hold_at_once():
    budget = Budget.of({"macs": "50%", "params": 300})
    assert budget.limits(GRAPH) == {"macs": 5000, "params": 300}
    assert budget.holds(GRAPH, Architecture({"conv": 3}))
    assert not budget.holds(GRAPH, Architecture({"conv": 4}))


def test_a_looser_budget_gives_back_a_part_of_what_is_taken():
    budget = Budget.of({"macs": "50%", "params": 300})
    full = {name: GRAPH.cost(name).exact(GRAPH.full) for name in ("macs", "params")}
    assert budget.loosened(0, GRAPH).limits(GRAPH) == budget.limits(GRAPH)
    assert budget.loosened(1, GRAPH).limits(GRAPH) == full
    assert budget.loosened(0.2, GRAPH).limits(GRAPH) == {"macs": 6000, "params": 300 + (full["params"] - 300) // 5}


def test_a_bound_may_be_met_exactly():
    assert Budget(macs=5000).holds(GRAPH, Architecture({"conv": 5}))
    assert not Budget(macs=4999).holds(GRAPH, Architecture({"conv": 5}))


def test_a_budget_passes_through():
    budget = Budget(params="10%")
    assert Budget.of(budget) is budget


def test_an_empty_budget_is_half_of_the_macs():
    assert Budget().limits(GRAPH) == {"macs": 5000}


@pytest.mark.parametrize("amount", ["half", "", "50%%", "1e", "5 T", "..", "nan", "--3"])
def test_text_that_is_no_amount_is_refused(amount):
    with pytest.raises(BudgetError, match="budget macs .* is not understood; write 50%, 0.5, 20e6, 20M or 1.2G"):
        Budget(macs=amount)


@pytest.mark.parametrize("amount", [True, [], {}, (1,)])
def test_a_value_that_is_no_amount_is_refused(amount):
    with pytest.raises(BudgetError, match="budget macs is .*; write 50%, 0.5 or an absolute number"):
        Budget(macs=amount)


@pytest.mark.parametrize("amount", [0, -1, "-5", "0%", "101%", float("inf"), float("nan"), "1e999", 10**400])
def test_an_amount_out_of_range_is_refused(amount):
    with pytest.raises(BudgetError, match="is out of range; it must be above 0 and at most 100% of the model"):
        Budget(params=amount)


@pytest.mark.parametrize("amount", ["3ms", "2.5 ms", "1s", "100us"])
def test_a_latency_is_no_number_of_macs(amount):
    with pytest.raises(BudgetError, match=f"is a latency; give it as one, such as latency: {amount}"):
        Budget(macs=amount)


def test_an_unknown_quantity_is_refused():
    with pytest.raises(BudgetError, match="budget 'flops' is unknown; the quantities are macs, params, latency"):
        Budget.of({"flops": 3})


def test_more_than_the_full_model_is_refused_with_both_numbers():
    with pytest.raises(BudgetError, match="budget macs 10,001 is more than the full model's 10,000; nothing to prune"):
        Budget(macs=10001).limits(GRAPH)


def test_an_unreachable_budget_names_the_smallest_cost():
    space = SearchSpace({"conv": (3, 10)}, {})
    Budget(macs=3000, params=300).require_reachable(GRAPH, space)
    with pytest.raises(
        BudgetError, match=r"has 2,999 macs or fewer; the smallest has 3,000 \(30.0% of the full model\)"
    ):
        Budget(macs=2999).require_reachable(GRAPH, space)
    with pytest.raises(BudgetError, match=r"has 299 params or fewer; the smallest has 300"):
        Budget(macs=3000, params=299).require_reachable(GRAPH, space)


def amounts(**lists) -> list[dict]:
    return [budget.amounts for budget in Budgets(**lists).each]


def test_a_percentage_without_its_sign_is_asked_about():
    with pytest.raises(BudgetError, match="or raise the budget; if a share is meant, write 50%"):
        Budget.of(50).require_reachable(GRAPH, SearchSpace.of(GRAPH))
    for share in ("0.5%", 0.005):  # of few multiply-adds, no percentage of their number
        with pytest.raises(BudgetError, match="or raise the budget$"):
            Budget.of(share).require_reachable(GRAPH, SearchSpace.of(GRAPH))


def test_several_budgets_stand_between_commas_or_in_a_list():
    assert amounts() == [{"macs": "50%"}]
    assert amounts(macs="30%, 50%,20M") == [{"macs": "30%"}, {"macs": "50%"}, {"macs": "20M"}]
    assert amounts(macs=["30%", 0.5]) == [{"macs": "30%"}, {"macs": 0.5}]
    assert amounts(macs="30%,50%", params="60%") == [{"macs": "30%", "params": "60%"}, {"macs": "50%", "params": "60%"}]
    assert amounts(macs="30%,50%", params="40%,60%") == [
        {"macs": "30%", "params": "40%"},
        {"macs": "50%", "params": "60%"},
    ]


def test_several_budgets_are_the_same_by_quantity():
    for budgets in ([Budget(macs="30%")], [Budget(macs="30%"), Budget(params=0.5)], [Budget(), Budget(latency="3ms")]):
        assert list(Budgets.of(budgets).each) == budgets
    assert Budgets.of([Budget(macs="30%", params="9%"), Budget(macs="50%", params="9%")]) == Budgets(
        macs=["30%", "50%"], params="9%"
    )


@pytest.mark.parametrize(
    ("lists", "message"),
    [({"macs": "30%,50%", "params": "1%,2%,3%"}, "budget macs names 2 amounts, another quantity 3"),
     ({"macs": "30%,50%,30%"}, "the budget macs-30pct is given twice"),
     ({"macs": "30%,half"}, "budget macs 'half' is not understood"), ({"macs": "30%,1ms"}, "'1ms' is a latency")],
)  # fmt: skip
def test_several_budgets_that_make_no_sense_are_refused(lists, message):
    with pytest.raises(BudgetError, match=message):
        Budgets(**lists)


def test_several_budgets_where_one_is_meant_are_refused():
    with pytest.raises(BudgetError, match="'30%,50%' names several, but one is meant here; tas compress takes several"):
        Budget(macs="30%,50%")


def test_the_name_of_a_budget_is_that_of_a_folder():
    names = [Budget.of(value).name for value in ("30%", 2e6, "3 ms", {"macs": "50%", "params": "1.5M"})]
    assert names == ["macs-30pct", "macs-2000000", "latency-3-ms", "macs-50pct-params-1.5M"]
