"""What an architecture costs: one polynomial in the sizes, evaluated exactly (integers) or in expectation (tensors)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tas.architecture import Architecture
from tas.lookup import Lookup, Side

if TYPE_CHECKING:
    from torch import Tensor

Gate = tuple[str, int]  # (depth, position): of a layer in a block that its depth drops when it keeps no more than that


class Kept(NamedTuple):
    """A condition on a depth: it keeps more than `above` blocks, and no more than `up_to`; None is no upper bound."""

    depth: str
    above: int
    up_to: int | None = None

    def holds(self, kept: int) -> bool:
        """Whether the depth may keep this many blocks."""
        return self.above < kept and (self.up_to is None or kept <= self.up_to)


@dataclass(frozen=True)
class Count:
    """Size of one axis as a linear function of the widths in it.

    Attributes:
        constant: positions that never change.
        widths: how often each channel of a width occurs, by width name.
    """

    constant: int
    widths: tuple[tuple[str, int], ...] = ()

    def of(self, sizes: Mapping[str, int]) -> int:
        """Positions left when each width keeps `sizes[width]` channels."""
        return self.constant + sum(times * sizes[width] for width, times in self.widths)


@dataclass(frozen=True)
class Term:
    """`coefficient` times the product of some axis sizes, paid under conditions.

    Attributes:
        coefficient: what one unit of the product costs.
        factors: the axis sizes.
        gates: conditions on depths, all of which must hold.
        unequal: two sizes; paid only where they differ, as a projection shortcut is. None is always paid.
        lookup: a measured factor; then there are no other factors, and it is always paid. None is 1.
    """

    coefficient: int
    factors: tuple[Count, ...] = ()
    gates: tuple[Kept, ...] = ()
    unequal: tuple[Side, Side] | None = None
    lookup: Lookup | None = None

    def __post_init__(self):
        assert self.lookup is None or not (self.factors or self.unequal)

    @property
    def ends(self) -> tuple[Side, Side] | None:
        """The two sizes that are compared or looked up."""
        return self.lookup.sides if self.lookup else self.unequal

    def of(self, architecture: Architecture) -> int:
        """Exact cost under `architecture`."""
        if not all(gate.holds(architecture.depths[gate.depth]) for gate in self.gates):
            return 0
        value = self.coefficient
        if self.ends is not None:
            one, other = (architecture.widths[side] if isinstance(side, str) else side for side in self.ends)
            if self.lookup is not None:
                value *= int(self.lookup.table([one], [other])[0, 0])
            elif one == other:
                return 0
        for factor in self.factors:
            value *= factor.of(architecture.widths)
        return value


class Pair(NamedTuple):
    """Two sizes, each to a power, where they differ; zero where they are equal."""

    one: Side
    other: Side
    one_power: int
    other_power: int

    @property
    def sides(self) -> tuple[Side, Side]:
        """What the two sizes are of."""
        return self.one, self.other

    def table(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(sizes of one, sizes of the other), the values."""
        left, right = one[:, None], other[None]
        return np.where(left != right, left**self.one_power * right**self.other_power, 0.0)


class Monomial(NamedTuple):
    """What a coefficient is multiplied with: conditions, powers of widths, at most one function of two other widths."""

    gates: tuple[Kept, ...]
    powers: tuple[tuple[str, int], ...]
    pair: Pair | Lookup | None = None


@dataclass(frozen=True)
class Cost:
    """A sum of terms: the multiply-adds, the parameters or the nanoseconds of every architecture of one graph."""

    terms: tuple[Term, ...]

    @property
    def is_measured(self) -> bool:
        """Whether it was measured in part: then a smaller size may cost more."""
        return any(term.lookup for term in self.terms)

    def exact(self, architecture: Architecture) -> int:
        """Cost of one architecture, an exact integer."""
        return sum(term.of(architecture) for term in self.terms)

    @cached_property
    def monomials(self) -> Mapping[Monomial, int]:
        """The sum multiplied out: coefficient by monomial.

        A width that occurs twice in a product needs its second moment in an expectation, hence the powers.
        """
        collected: Counter[Monomial] = Counter()
        for term in self.terms:
            gates, unequal = _joined(term.gates), term.unequal
            if gates is None or (unequal is not None and unequal[0] == unequal[1]):
                continue
            choices = [[(None, factor.constant), *factor.widths] for factor in term.factors]
            for picked in product(*choices):
                coefficient = term.coefficient
                powers: Counter = Counter()
                for width, times in picked:
                    coefficient *= times
                    if width is not None:
                        powers[width] += 1
                if coefficient:
                    pair = term.lookup or (unequal and Pair(*unequal, *(powers.pop(side, 0) for side in unequal)))
                    collected[Monomial(gates, tuple(sorted(powers.items())), pair)] += coefficient
        return dict(collected)


def _joined(gates: Sequence[Kept]) -> tuple[Kept, ...] | None:
    """One condition per depth, which are independent of each other; None if they cannot all hold."""
    found: dict[str, Kept] = {}
    for gate in gates:
        known = found.get(gate.depth, gate)
        ends = [end for end in (known.up_to, gate.up_to) if end is not None]
        found[gate.depth] = Kept(gate.depth, max(known.above, gate.above), min(ends, default=None))
    if any(gate.up_to is not None and gate.up_to <= gate.above for gate in found.values()):
        return None
    return tuple(found[depth] for depth in sorted(found))


class CostTable:
    """A `Cost` over fixed candidates, ready for many architectures or a distribution at once.

    Rows are the choices: all widths in the order given, then all depths; columns are candidates, padded on the right.
    A monomial is a coefficient times some factors: conditions on depths, functions of two widths, powers of widths.
    Every factor has a place among all of them; place 0 is the factor 1.
    """

    def __init__(self, cost: Cost, widths: Mapping[str, Sequence[int]], depths: Mapping[str, Sequence[int]]):
        monomials = cost.monomials
        self.num_widths = len(widths)
        self._columns = max([len(sizes) for sizes in (*widths.values(), *depths.values())], default=1)
        self._coefficients = np.array(list(monomials.values()), dtype=float)
        power_rows = {name: index for index, name in enumerate(widths)}
        top = max((power for _, powers, _ in monomials for _, power in powers), default=1)
        sizes = self._padded(list(widths.values()))
        # candidate size to the power
        self._powers = np.where(sizes[..., None] > 0, sizes[..., None] ** np.arange(top + 1.0), 1.0)
        self._open, gates = self._gates(monomials, depths)
        self._pairs, self._pair_rows, pairs = self._unequal(monomials, widths)
        behind = 1 + len(gates) + len(pairs)
        factors = [[gates[gate] for gate in key.gates] + ([pairs[key.pair]] if key.pair else []) for key in monomials]
        for row, key in zip(factors, monomials, strict=True):
            row += [behind + power_rows[width] * (top + 1) + power for width, power in key.powers]
        self._places = _table(factors)
        self._tensors: dict[Any, list[Any]] = {}

    def _padded(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """(rows, columns), zero where there is no candidate."""
        table = np.zeros((len(rows), self._columns))
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        return table

    def _gates(
        self, monomials: Mapping[Monomial, int], depths: Mapping[str, Sequence[int]]
    ) -> tuple[np.ndarray, dict[Kept, int]]:
        """(gates, depths, columns), 1 where that candidate fulfils the condition; and the place of every gate."""
        found = {
            gate: place + 1 for place, gate in enumerate(sorted({g for key in monomials for g in key.gates}, key=str))
        }
        rows, table = list(depths), np.zeros((len(found), len(depths), self._columns))
        for gate, place in found.items():
            for column, kept in enumerate(depths[gate.depth]):
                table[place - 1, rows.index(gate.depth), column] = gate.holds(kept)
        return table, found

    def _unequal(
        self, monomials: Mapping[Monomial, int], widths: Mapping[str, Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray, dict[Pair | Lookup, int]]:
        """(pairs, columns, columns), the value for every two candidates; (2, pairs), their rows; and the places.

        A side that never changes has the row behind all widths, of which the first column is certain.
        """
        found = {pair: place for place, pair in enumerate(dict.fromkeys(key.pair for key in monomials if key.pair))}
        order, values = [*widths], np.zeros((len(found), self._columns, self._columns))
        rows = [[order.index(s) if isinstance(s, str) else len(order) for s in pair.sides] for pair in found]
        for pair, place in found.items():
            one, other = (np.array(widths[s] if isinstance(s, str) else [s], dtype=float) for s in pair.sides)
            values[place, : len(one), : len(other)] = pair.table(one, other)
        places = {pair: 1 + len(self._open) + place for pair, place in found.items()}
        return values, np.array(rows, dtype=int).reshape(-1, 2).T, places

    def exact(self, choices: np.ndarray) -> np.ndarray:
        """Costs of many architectures at once.

        Args:
            choices: (architectures, choices), candidate indices.

        Returns:
            (architectures,), int64.
        """
        # float64 is exact for whole numbers below 2**53, far above any cost
        return np.rint(_sum(self._coefficients, self._factors(choices), self._places)).astype(np.int64)

    def changed(self, choices: np.ndarray) -> np.ndarray:
        """Costs of all architectures that differ from the given ones in one choice, or in none.

        While the others stay, the cost is linear in what a choice makes of its factors: the slopes tell them all.

        Args:
            choices: (architectures, choices), candidate indices.

        Returns:
            (architectures, choices, candidates), int64; what stands in the padding means nothing.
        """
        factors = self._factors(choices)
        count, places = factors.shape
        parts = factors[:, self._places]  # (architectures, factors of a monomial, monomials)
        before, behind = np.cumprod(parts, axis=1), np.cumprod(parts[:, ::-1], axis=1)[:, ::-1]
        others = np.ones_like(parts)
        others[:, 1:] = before[:, :-1]
        others[:, :-1] *= behind[:, 1:]
        where = self._places + places * np.arange(count)[:, None, None]
        slopes = np.bincount(where.ravel(), (others * self._coefficients).ravel(), count * places)
        added = self._added(slopes.reshape(count, places), choices)
        now = added[np.arange(count)[:, None], np.arange(choices.shape[1]), choices]
        costs = before[:, -1] @ self._coefficients
        return np.rint(added + (costs[:, None] - now)[..., None]).astype(np.int64)

    def _factors(self, choices: np.ndarray) -> np.ndarray:
        """(architectures, places), the values of all factors."""
        sized, depths = choices[:, : self.num_widths], choices[:, self.num_widths :]
        gates = self._open[:, np.arange(depths.shape[1]), depths].sum(-1).T
        one, other = self._ends(choices)
        pairs = self._pairs[np.arange(len(self._pairs)), one, other]
        moments = self._powers[np.arange(self.num_widths), sized].reshape(len(choices), -1)
        return np.concatenate([np.ones((len(choices), 1)), gates, pairs, moments], axis=1)

    def _ends(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(architectures, pairs) twice, the candidates of the two widths of every pair."""
        sized = np.concatenate([choices[:, : self.num_widths], np.zeros((len(choices), 1), dtype=int)], axis=1)
        return sized[:, self._pair_rows[0]], sized[:, self._pair_rows[1]]

    def _added(self, slopes: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """(architectures, choices, candidates), what every candidate adds to the cost of the rest.

        Args:
            slopes: (architectures, places), of the cost by every factor.
            choices: (architectures, choices), candidate indices.
        """
        count, gates, pairs = len(slopes), 1 + len(self._open), 1 + len(self._open) + len(self._pairs)
        moments = slopes[:, pairs:].reshape(count, self.num_widths, self._powers.shape[2])
        widths = (self._powers @ moments.transpose(1, 2, 0)).transpose(2, 0, 1)
        depths = np.tensordot(slopes[:, 1:gates], self._open, 1)
        if len(self._pairs):
            one, other = self._ends(choices)
            index, everyone = np.arange(len(self._pairs)), np.arange(count)[:, None]
            widths = np.concatenate([widths, np.zeros((count, 1, self._columns))], axis=1)
            by_one, by_other = self._pairs.transpose(0, 2, 1)[index, other], self._pairs[index, one]
            for rows, values in zip(self._pair_rows, (by_one, by_other), strict=True):
                np.add.at(widths, (everyone, rows), slopes[:, gates:pairs, None] * values)
            widths = widths[:, :-1]
        return np.concatenate([widths, depths], axis=1)

    def expected(self, probabilities: Tensor) -> Tensor:
        """Expected cost when every choice is drawn independently.

        Args:
            probabilities: (choices, candidates), rows summing to one, padding zero.

        Returns:
            Scalar, differentiable.
        """
        import torch

        key = (probabilities.device, probabilities.dtype)
        if key not in self._tensors:
            floats = (self._powers, self._open, self._pairs, self._coefficients)
            self._tensors[key] = [torch.as_tensor(a, dtype=key[1], device=key[0]) for a in floats]
            self._tensors[key] += [torch.as_tensor(a, device=key[0]) for a in (self._pair_rows, self._places)]
        powers, opens, unequal, coefficients, pair_rows, places = self._tensors[key]
        sized, one = probabilities[: self.num_widths], probabilities.new_ones(1)
        moments = (sized[:, :, None] * powers).sum(1).flatten()
        gates = (probabilities[self.num_widths :] * opens).sum((1, 2))
        certain = torch.nn.functional.pad(one, (0, probabilities.shape[1] - 1))[None]
        left, right = torch.cat([sized, certain])[pair_rows]
        pairs = (left[:, :, None] * unequal * right[:, None]).sum((1, 2))  # p_a' E p_b
        return _sum(coefficients, torch.cat([one, gates, pairs, moments]), places)


def _table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """(longest row, at least 1; rows), zero where a row is shorter."""
    table = np.zeros((max([1, *map(len, rows)]), len(rows)), dtype=int)
    for column, row in enumerate(rows):
        table[: len(row), column] = row
    return table


def _sum(coefficients: Any, factors: Any, places: Any) -> Any:
    """The one arithmetic of both: Σ coefficient · Π factors; numpy or torch, leading batch axes allowed."""
    total = coefficients
    for row in places:
        total = total * factors[..., row]
    return total.sum(-1)
