"""Which sizes may be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

from tas.architecture import Architecture
from tas.errors import ConfigError
from tas.graph import Graph

if TYPE_CHECKING:
    import torch

PAPER_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def width_candidates(size: int, ratios: Sequence[float] = PAPER_RATIOS) -> tuple[int, ...]:
    """Sizes offered to a width: the whole part of ratio x size, at least 1, the full size always among them.

    Source:
        Dong and Yang, 2019; the released code. 16 channels give 4 6 8 9 11 12 14 16.
    """
    # 1e-9: 0.7 * 10 must not fall below 7
    return tuple(sorted({max(1, int(ratio * size + 1e-9)) for ratio in ratios} | {size}))


def depth_candidates(blocks: int) -> tuple[int, ...]:
    """Blocks offered to a stage: every number up to four, every second from five on, the full depth always.

    Source:
        Dong and Yang, 2019; the released code: 3 gives 1 2 3, 5 gives 1 3 5, 18 gives 1 3 … 17 18.
    """
    return tuple(sorted({*range(1, blocks + 1, 1 if blocks < 5 else 2), blocks}))


@dataclass(frozen=True)
class SearchSpace:
    """The candidate sizes of every width and depth, ascending.

    Attributes:
        widths: candidates by width name.
        depths: candidates by depth name.
    """

    widths: Mapping[str, tuple[int, ...]]
    depths: Mapping[str, tuple[int, ...]]

    def __post_init__(self):
        for name, sizes in (*self.widths.items(), *self.depths.items()):
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise ConfigError(
                    f"candidates of {name!r} are {tuple(sizes)}; give ascending whole numbers of at least 1"
                )

    @classmethod
    def of(
        cls,
        graph: Graph,
        *,
        choose: Literal["both", "width", "depth"] = "both",
        ratios: Sequence[float] = PAPER_RATIOS,
    ) -> SearchSpace:
        """Offer the paper's candidates to every width and depth of `graph`.

        Args:
            graph: from `tas.trace`.
            choose: widths, depths, or both; what is not chosen keeps its full size.
            ratios: shares of a width's channels, each in (0, 1].

        Raises:
            ConfigError: a ratio is out of range, or `choose` is none of the three.
        """
        if choose not in ("both", "width", "depth"):
            raise ConfigError(f"choose is {choose!r}; it can be both, width or depth")
        if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
            raise ConfigError(f"ratios are {tuple(ratios)}; give shares above 0 and up to 1")
        return cls(
            {
                width.name: (width.size,) if choose == "depth" else width_candidates(width.size, ratios)
                for width in graph.widths
            },
            {
                depth.name: (len(depth.blocks),) if choose == "width" else depth_candidates(len(depth.blocks))
                for depth in graph.depths
            },
        )

    @cached_property
    def largest(self) -> Architecture:
        """The largest candidate of everything."""
        return self._pick(-1)

    @cached_property
    def smallest(self) -> Architecture:
        """The smallest candidate of everything: nothing in the space costs less."""
        return self._pick(0)

    def _pick(self, index: int) -> Architecture:
        return Architecture(
            {name: sizes[index] for name, sizes in self.widths.items()},
            {name: sizes[index] for name, sizes in self.depths.items()},
        )

    @property
    def num_architectures(self) -> int:
        """How many architectures there are."""
        return prod(len(sizes) for sizes in (*self.widths.values(), *self.depths.values()))

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Draw every size uniformly and independently; torch's own generator where none is given."""
        import torch

        def draw(choices: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
            return {
                name: sizes[int(torch.randint(len(sizes), (), generator=generator))] for name, sizes in choices.items()
            }

        return Architecture(draw(self.widths), draw(self.depths))

    def __contains__(self, architecture: Architecture) -> bool:
        return (
            architecture.widths.keys() == self.widths.keys()
            and architecture.depths.keys() == self.depths.keys()
            and all(size in self.widths[name] for name, size in architecture.widths.items())
            and all(size in self.depths[name] for name, size in architecture.depths.items())
        )
