"""What an architecture costs: one polynomial in the sizes, evaluated exactly (integers) or in expectation (tensors)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from tas.architecture import Architecture

if TYPE_CHECKING:
    from torch import Tensor

Gate = tuple[str, int]


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
    """`coefficient` times the product of some axis sizes, paid while its block is kept.

    Attributes:
        coefficient: what one unit of the product costs.
        factors: the axis sizes.
        gate: (depth name, position): paid while the depth keeps more than `position` blocks; None is always paid.
    """

    coefficient: int
    factors: tuple[Count, ...] = ()
    gate: Gate | None = None

    def of(self, architecture: Architecture) -> int:
        """Exact cost under `architecture`."""
        if self.gate and architecture.depths[self.gate[0]] <= self.gate[1]:
            return 0
        value = self.coefficient
        for factor in self.factors:
            value *= factor.of(architecture.widths)
        return value


@dataclass(frozen=True)
class Cost:
    """A sum of terms: the multiply-adds or the parameters of every architecture of one graph."""

    terms: tuple[Term, ...]

    def exact(self, architecture: Architecture) -> int:
        """Cost of one architecture, an exact integer."""
        return sum(term.of(architecture) for term in self.terms)

    @cached_property
    def monomials(self) -> Mapping[tuple[Gate | None, tuple[tuple[str, int], ...]], int]:
        """The sum multiplied out: coefficient by (gate, ((width, power), …)).

        A width that occurs twice in a product needs its second moment in an expectation, hence the powers.
        """
        collected: Counter = Counter()
        for term in self.terms:
            choices = [[(None, factor.constant), *factor.widths] for factor in term.factors]
            for picked in product(*choices):
                coefficient = term.coefficient
                powers: Counter = Counter()
                for width, times in picked:
                    coefficient *= times
                    if width is not None:
                        powers[width] += 1
                if coefficient:
                    collected[term.gate, tuple(sorted(powers.items()))] += coefficient
        return dict(collected)


class CostTable:
    """A `Cost` over fixed candidates, ready for many architectures or a distribution at once.

    Rows are the choices: all widths in the order given, then all depths; columns are candidates, padded on the right.
    """

    def __init__(self, cost: Cost, widths: Mapping[str, Sequence[int]], depths: Mapping[str, Sequence[int]]):
        monomials = cost.monomials
        columns = max([len(sizes) for sizes in (*widths.values(), *depths.values())], default=1)
        rank = max((len(powers) for _, powers in monomials), default=0)
        top = max((power for _, powers in monomials for _, power in powers), default=1)
        row = {name: index for index, name in enumerate(widths)}
        gates = {gate: index + 1 for index, gate in enumerate(sorted({gate for gate, _ in monomials if gate}))}

        self.num_widths = len(widths)
        self._powers = np.ones((len(widths), columns, top + 1))  # candidate size to the power
        for index, sizes in enumerate(widths.values()):
            for power in range(top + 1):
                self._powers[index, : len(sizes), power] = np.asarray(sizes, dtype=float) ** power
        self._open = np.zeros((len(gates), len(depths), columns))  # 1 where that candidate pays for the gate
        for (depth, position), index in gates.items():
            for column, kept in enumerate(depths[depth]):
                self._open[index - 1, list(depths).index(depth), column] = kept > position
        self._coefficients = np.array(list(monomials.values()), dtype=float)
        self._gate = np.array([gates[gate] if gate else 0 for gate, _ in monomials], dtype=int)
        self._width = np.zeros((rank, len(monomials)), dtype=int)
        self._power = np.zeros((rank, len(monomials)), dtype=int)
        for column, (_, powers) in enumerate(monomials):
            for place, (width, power) in enumerate(powers):
                self._width[place, column], self._power[place, column] = row[width], power
        self._tensors: dict[Any, list[Any]] = {}

    def exact(self, choices: np.ndarray) -> np.ndarray:
        """Costs of many architectures at once.

        Args:
            choices: (architectures, choices), candidate indices.

        Returns:
            (architectures,), int64.
        """
        rows = np.arange(self.num_widths)
        moments = self._powers[rows, choices[:, : self.num_widths]]
        depths = choices[:, self.num_widths :]
        chosen = self._open[:, np.arange(depths.shape[1])[None], depths]  # (gates, architectures, depths)
        gates = np.concatenate([np.ones((len(choices), 1)), chosen.sum(-1).T], axis=1)
        # float64 is exact for whole numbers below 2**53, far above any cost
        return np.rint(_sum(moments, gates, self._coefficients, self._gate, self._width, self._power)).astype(np.int64)

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
            floats = [
                torch.as_tensor(a, dtype=key[1], device=key[0]) for a in (self._powers, self._open, self._coefficients)
            ]
            self._tensors[key] = floats + [
                torch.as_tensor(a, device=key[0]) for a in (self._gate, self._width, self._power)
            ]
        powers, opens, coefficients, gate, width, power = self._tensors[key]
        moments = (probabilities[: self.num_widths, :, None] * powers).sum(1)
        chosen = (probabilities[self.num_widths :] * opens).sum((1, 2))
        return _sum(moments, torch.cat([chosen.new_ones(1), chosen]), coefficients, gate, width, power)


def _sum(moments: Any, gates: Any, coefficients: Any, gate: Any, width: Any, power: Any) -> Any:
    """The one arithmetic of both: Σ coefficient · gate · Π moment; numpy or torch, leading batch axes allowed."""
    value = coefficients * gates[..., gate]
    for place in range(len(width)):
        value = value * moments[..., width[place], power[place]]
    return value.sum(-1)
