"""Upper bounds on what the small model may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tas.architecture import Architecture
from tas.cheapest import cheapest
from tas.errors import BudgetError
from tas.graph import Graph
from tas.space import SearchSpace
from tas.storage import file_name

Amount = str | int | float
QUANTITIES = ("macs", "params", "latency")
MOST_KEPT_BACK = 0.1  # of a bound on latency; where predictions are worse, measuring longer is the way out
DEFAULT = "50%"  # of the multiply-adds
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "%": 0.01}
_TIMES = {"": 1.0, "%": 0.01, "us": 1e3, "\u00b5s": 1e3, "ms": 1e6, "s": 1e9}  # in nanoseconds


def _amount(value: Any, quantity: str) -> tuple[float, bool]:
    """Read one amount as (number, is a share of the full model)."""
    units, examples = (_TIMES, "60%, 0.6 or 3ms") if quantity == "latency" else (_UNITS, "50%, 0.5, 20e6, 20M or 1.2G")
    if isinstance(value, str) and "," in value:
        raise BudgetError(
            f"budget {quantity} {value!r} names several, but one is meant here; tas compress takes several, and "
            f"tas.compress a list"
        )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        other = (
            "60%, 0.6 or a time such as 3ms"
            if quantity == "latency"
            else "50%, 0.5 or an absolute number such as 20e6 or 20M"
        )
        raise BudgetError(f"budget {quantity} is {value!r}; write {other}")
    if isinstance(value, str):
        match = re.fullmatch(r"([+-]?[\d.]+(?:e[+-]?\d+)?) *([a-z\u00b5\u03bc%]*)", value.strip().lower())
        unit = match[2].replace("\u03bc", "\u00b5") if match else ""
        try:
            number = float(match[1]) if match else math.nan
        except ValueError:
            number = math.nan
        if match is not None and quantity != "latency" and unit in _TIMES.keys() - _UNITS.keys():
            raise BudgetError(
                f"budget {quantity} {value!r} is a latency; give it as one, such as latency: {value.strip()}"
            )
        if unit not in units or math.isnan(number):
            raise BudgetError(f"budget {quantity} {value!r} is not understood; write {examples}")
        is_share = unit == "%" or (unit == "" and number <= 1)
        number *= units[unit]
    else:
        is_share = value <= 1
        number = float(value) if abs(value) < 1e300 else math.inf  # a larger integer has no float
    if quantity == "latency" and not is_share and not (isinstance(value, str) and unit):
        raise BudgetError(f"budget latency {value!r} has no unit; write {examples}")
    if not 0 < number < math.inf or (is_share and number > 1):
        raise BudgetError(
            f"budget {quantity} {value!r} is out of range; it must be above 0 and at most 100% of the model"
        )
    return number, is_share


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds, all of which hold; without any, half the multiply-adds.

    An amount is a share of the full model (50%, 0.5) or absolute (20e6, 20M, 1.2G; 3ms, 500us, 0.1s).

    Attributes:
        macs: most multiply-adds per sample.
        params: largest number of parameters.
        latency: longest forward pass, as predicted from measurements on this machine (`tas.with_latency`).

    Raises:
        BudgetError: an amount is not understood, not above 0, or over 100 %.
    """

    macs: Amount | None = None
    params: Amount | None = None
    latency: Amount | None = None

    def __post_init__(self):
        for name, value in self.amounts.items():
            _amount(value, name)

    @property
    def amounts(self) -> dict[str, Amount]:
        """The bounds as given, by quantity; the default where none is."""
        given = {name: getattr(self, name) for name in QUANTITIES}
        return {name: value for name, value in given.items() if value is not None} or {"macs": DEFAULT}

    @classmethod
    def of(cls, value: Budget | Amount | Mapping[str, Amount]) -> Budget:
        """Understand `"50%"`, `0.5`, `20e6` (all macs), `"3ms"`, `{"params": "30%"}` or a `Budget`."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            if odd := set(value) - set(QUANTITIES):
                raise BudgetError(f"budget {sorted(odd)[0]!r} is unknown; the quantities are {', '.join(QUANTITIES)}")
            return cls(**value)
        is_time = isinstance(value, str) and re.fullmatch(r"[\d.]+ *(ms|us|\u00b5s|\u03bcs|s)", value.strip().lower())
        return cls(latency=value) if is_time else cls(macs=value)

    @property
    def name(self) -> str:
        """The bounds as the name of a folder: `macs-30pct`."""
        words = {name: f"{value:.15g}" if isinstance(value, float) else value for name, value in self.amounts.items()}
        return file_name("-".join(f"{name}-{value}" for name, value in words.items()))

    def tightness(self, graph: Graph) -> float:
        """The smallest share of the full model's cost that a bound allows, in (0, 1]."""
        return min(limit / graph.full_cost(name) for name, limit in self.limits(graph).items())

    def loosened(self, part: float, graph: Graph) -> Budget:
        """A budget that gives back this part of what the bounds take away from the full model, in [0, 1]."""
        looser = {}
        for quantity, value in self.amounts.items():
            number, is_share = _amount(value, quantity)
            share = number if is_share else number / graph.full_cost(quantity)
            looser[quantity] = share + part * (1 - share)
        return Budget(**looser)

    def limits(self, graph: Graph) -> dict[str, int]:
        """The bounds in absolute numbers, by quantity; of latency in nanoseconds.

        Of a bound on latency the error of its prediction is kept back, at most `MOST_KEPT_BACK` of it, so that
        what is measured holds it too.

        Raises:
            BudgetError: an absolute bound lies over the full model's cost, or a latency was not measured.
        """
        bounds = {}
        for quantity, value in self.amounts.items():
            number, is_share = _amount(value, quantity)
            full = graph.full_cost(quantity)
            # 1e-9: 0.3 * full must not lose one to rounding
            bounds[quantity] = math.floor(number * full + 1e-9) if is_share else math.floor(number)
            if bounds[quantity] > full:
                raise BudgetError(
                    f"budget {quantity} {_number(bounds[quantity], quantity)} is more than the full model's "
                    f"{_number(full, quantity)}; nothing to prune. Give a smaller number or a share such as 50%"
                )
            if quantity == "latency" and graph.latency is not None:
                kept_back = min(graph.latency.error, MOST_KEPT_BACK)
                bounds[quantity] = math.floor(bounds[quantity] / (1 + kept_back) + 1e-6)
        return bounds

    def holds(self, graph: Graph, architecture: Architecture) -> bool:
        """Whether `architecture` costs no more than every bound."""
        return all(graph.cost(name).exact(architecture) <= limit for name, limit in self.limits(graph).items())

    def require_reachable(self, graph: Graph, space: SearchSpace) -> None:
        """Complain early about a budget nothing can hold.

        Args:
            graph: of the model.
            space: the candidates.

        Raises:
            BudgetError: names the smallest reachable cost.
        """
        for quantity, limit in self.limits(graph).items():
            smallest = cheapest(graph, space, quantity)
            least, full = graph.cost(quantity).exact(smallest), graph.full_cost(quantity)
            has, number = cost_text(limit, quantity), _number(least, quantity)
            bound = f"takes {has} or less" if quantity == "latency" else f"has {has} or fewer"
            if limit < least == graph.cost(quantity).exact(graph.full):
                raise BudgetError(
                    f"nothing in this space can be made smaller, so no architecture {bound}; "
                    f"the smallest has {number} (100.0% of the full model). tas trace shows what is left alone "
                    f"and why"
                )
            if least > limit:
                given, is_share = _amount(self.amounts[quantity], quantity)
                may_be_percent = not is_share and given <= 100 and quantity != "latency"
                hint = f"; if a share is meant, write {given:g}%" if may_be_percent else ""
                raise BudgetError(
                    f"no architecture in this space {bound}; the smallest has {number} "
                    f"({100 * least / full:.1f}% of the full model). Allow smaller widths or raise the budget{hint}"
                )


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """One budget, or several from one search: 30%,50%,70%. Lists of several quantities go in pairs.

    Attributes:
        macs: most multiply-adds per sample.
        params: largest number of parameters.
        latency: longest forward pass, as predicted from measurements on this machine.

    Raises:
        BudgetError: lists differ in length, or a budget in them makes no sense or stands there twice.
    """

    macs: Amount | list[Amount | None] | None = None
    params: Amount | list[Amount | None] | None = None
    latency: Amount | list[Amount | None] | None = None

    def __post_init__(self):
        require_distinct(self.each)

    @property
    def each(self) -> tuple[Budget, ...]:
        """The budgets one by one; what is given once holds for all."""
        lists = {name: _listed(getattr(self, name)) for name in QUANTITIES}
        count = max(map(len, lists.values()))
        if odd := [name for name, amounts in lists.items() if len(amounts) not in (1, count)]:
            raise BudgetError(
                f"budget {odd[0]} names {len(lists[odd[0]])} amounts, another quantity {count}; give as many, or one "
                f"for all"
            )
        rows = zip(*(amounts * (count // len(amounts)) for amounts in lists.values()), strict=True)
        return tuple(Budget(**dict(zip(QUANTITIES, row, strict=True))) for row in rows)

    @classmethod
    def of(cls, budgets: Sequence[Budget]) -> Budgets:
        """The budgets by quantity, as in a run's config."""
        columns = {name: [getattr(budget, name) for budget in budgets] for name in QUANTITIES}
        return cls(**{name: row[0] if len(set(row)) == 1 else row for name, row in columns.items()})


def _listed(amounts: Any) -> list[Any]:
    if isinstance(amounts, str):
        return [part.strip() for part in amounts.split(",") if part.strip()] or [amounts]
    return list(amounts) or [None] if isinstance(amounts, list | tuple) else [amounts]


def require_distinct(budgets: Sequence[Budget]) -> None:
    """Raise `BudgetError` where there is no budget, or two have one name: each has a folder of that name."""
    if not budgets:
        raise BudgetError("no budget is given; give one, such as 50%")
    names = [budget.name for budget in budgets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BudgetError(f"the budget {twice[0]} is given twice; give each once")


def amount_text(value: Amount, quantity: str) -> str:
    """A bound for people: `50% of macs`, also of a share that was given as 0.5; `2500 params`."""
    number, is_share = _amount(value, quantity)
    if is_share:
        return f"{100 * number:.6g}% of {quantity}"
    return f"{value if isinstance(value, str) else f'{number:.0f}'} {quantity}"


def bounds_text(amounts: Mapping[str, Amount]) -> str:
    """Bounds by quantity in words: `50% of macs, 25 params`."""
    return ", ".join(amount_text(value, name) for name, value in amounts.items())


def share_used(graph: Graph, architecture: Architecture, limits: Mapping[str, int]) -> float:
    """The largest share of a bound that an architecture uses; at most 1 fits."""
    return max(graph.cost(name).exact(architecture) / limit for name, limit in limits.items())


def cost_text(cost: float, quantity: str) -> str:
    """A cost for people: `1,234 macs`, `3.100 ms`."""
    return f"{cost / 1e6:,.3f} ms" if quantity == "latency" else f"{cost:,} {quantity}"


def _number(cost: int, quantity: str) -> str:
    return cost_text(cost, quantity).removesuffix(f" {quantity}")
