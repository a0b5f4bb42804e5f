"""Which sizes may be chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import gcd, prod
from typing import TYPE_CHECKING, Any, Literal

from tas.architecture import Architecture
from tas.errors import ConfigError
from tas.graph import Graph
from tas.options import check_options, near_misses

if TYPE_CHECKING:
    import torch

# Dong and Yang, 2019, and the released code: the whole part of each, so that 16 channels give 4 6 8 9 11 12 14 16
PAPER_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Size = int | float | str  # 48 is a size; 0.5 and "50%" are shares


def _part(ratio: float, size: int) -> int:
    return max(1, int(ratio * size + 1e-9))  # 1e-9: 0.7 * 10 must not fall below 7


def depth_candidates(blocks: int) -> tuple[int, ...]:
    """Blocks offered to a stage: every number up to four, every second from five on, the full depth always.

    Source:
        Dong and Yang, 2019; the released code: 3 gives 1 2 3, 5 gives 1 3 5, 18 gives 1 3 … 17 18.
    """
    return tuple(sorted({*range(1, blocks + 1, 1 if blocks < 5 else 2), blocks}))


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """Which candidates a search space offers. The defaults are the paper's.

    `round_to` and `minimum` count the output channels of the layer that makes a width: one head of attention, or one
    channel per group of a grouped convolution, counts as all the outputs it fills. They hold for shares; a size that is
    given as a number of its own stands as it is.

    Attributes:
        choose: widths, depths, or both; what is not chosen keeps its full size.
        ratios: shares of a width's channels, each in (0, 1].
        round_to: the candidates of a width are the nearest multiples of this, and the full size.
        minimum: no width gets fewer; a width that has fewer keeps them all.
        candidates: sizes by pattern of width and depth names, such as `{"layer4.*": [64, "50%", 0.75]}`; the first
            pattern that matches counts. Whole numbers are channels or blocks, and left out where a width or depth has
            fewer; the full size is always offered.

    Raises:
        ConfigError: names the option, its value and what it can be.
    """

    choose: Literal["both", "width", "depth"] = "both"
    ratios: tuple[float, ...] = PAPER_RATIOS
    round_to: int = 1
    minimum: int = 1
    candidates: dict[str, list[int | float | str]] = field(default_factory=dict)

    def __post_init__(self):
        check_options(self, "space", above_zero=("round_to", "minimum"))
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"space ratios are {tuple(self.ratios)}; give shares above 0 and up to 1")
        for pattern, sizes in self.candidates.items():
            if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not all(map(_is_size, sizes)):
                raise ConfigError(
                    f"space candidates of {pattern!r} are {sizes!r}; give a list of whole numbers of at least 1 and "
                    f"shares above 0 and up to 1, such as [64, 0.5, '75%']"
                )


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
        for name, sizes in self.choices.items():
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise ConfigError(
                    f"candidates of {name!r} are {tuple(sizes)}; give ascending whole numbers of at least 1"
                )

    @classmethod
    def of(cls, graph: Graph, config: SpaceConfig | None = None, **options: Any) -> SearchSpace:
        """Offer candidates to every width and depth of `graph`; those of the paper by default.

        Args:
            graph: from `tas.trace`.
            config: see `SpaceConfig`.
            options: options of `SpaceConfig`, in place of those in `config`.

        Raises:
            ConfigError: an option is out of range, a pattern matches nothing, or a size fits nothing it is meant for.

        Example:
            space = tas.SearchSpace.of(graph, round_to=8, minimum=16, candidates={"layer4.*": ["25%", "50%"]})
        """
        config = replace(config or SpaceConfig(), **options)
        full, listed = graph.full, _lists(graph, config)
        shares = tuple(map(float, config.ratios))  # a ratio of 1 is all channels, not one
        excluded = {width.name: width.excluded for width in graph.widths}
        widths = {
            name: (size,)
            if config.choose == "depth"
            else _offered(listed.get(name, shares), size, *_grid(graph, name, config), excluded[name])
            for name, size in full.widths.items()
        }
        depths = {
            name: (blocks,)
            if config.choose == "width"
            else _offered(listed[name], blocks)
            if name in listed
            else depth_candidates(blocks)
            for name, blocks in full.depths.items()
        }
        return cls(widths, depths)

    @cached_property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """All candidates by name, of the widths before those of the depths."""
        return {**self.widths, **self.depths}

    def architecture(self, picks: Iterable[int]) -> Architecture:
        """The architecture of these candidate indices, one for each of the `choices` in their order."""
        sizes = {name: sizes[pick] for (name, sizes), pick in zip(self.choices.items(), picks, strict=True)}
        return Architecture({name: sizes[name] for name in self.widths}, {name: sizes[name] for name in self.depths})

    @cached_property
    def largest(self) -> Architecture:
        """The largest candidate of everything."""
        return self.architecture([-1] * len(self.choices))

    @cached_property
    def smallest(self) -> Architecture:
        """The smallest candidate of everything: nothing costs less, unless a projection shortcut does (`cheapest`)."""
        return self.architecture([0] * len(self.choices))

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose."""
        return self.largest != self.smallest

    @property
    def num_architectures(self) -> int:
        """How many architectures there are."""
        return prod(map(len, self.choices.values()))

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Draw every size uniformly and independently; torch's own generator where none is given."""
        import torch

        return self.architecture(
            int(torch.randint(len(sizes), (), generator=generator)) for sizes in self.choices.values()
        )

    def __contains__(self, architecture: Architecture) -> bool:
        return (
            architecture.widths.keys() == self.widths.keys()
            and architecture.depths.keys() == self.depths.keys()
            and all(size in self.widths[name] for name, size in architecture.widths.items())
            and all(size in self.depths[name] for name, size in architecture.depths.items())
        )


def _share(size: float | str) -> float:
    """The number that a share stands for; NaN for text that is none."""
    if not isinstance(size, str):
        return size
    try:
        return float(size.removesuffix("%")) / 100 if size.endswith("%") else float("nan")
    except ValueError:
        return float("nan")


def _is_size(size: Any) -> bool:
    if isinstance(size, int):
        return size >= 1 and not isinstance(size, bool)
    return isinstance(size, float | str) and 0 < _share(size) <= 1


def _offered(
    sizes: Sequence[Size], full: int, step: int = 1, least: int = 1, excluded: Sequence[int] = ()
) -> tuple[int, ...]:
    """The candidates that sizes and shares stand for; shares become multiples of `step`, at least `least`."""
    found = {full}
    for size in sizes:
        if not isinstance(size, int):
            nearest = int(_part(_share(size), full) / step + 0.5) * step
            nearest = max(nearest, least)
            while nearest in excluded:
                nearest += step
            found.add(min(nearest, full))
        elif size <= full and size not in excluded:
            found.add(size)
    return tuple(sorted(found))


def _grid(graph: Graph, width: str, config: SpaceConfig) -> tuple[int, int]:
    """Channels by which the candidates of a width differ, and the fewest, for `round_to` and `minimum` outputs."""
    filled = outputs_per_channel(graph, width)
    step = config.round_to // gcd(config.round_to, filled)
    return step, -(-config.minimum // (filled * step)) * step


def outputs_per_channel(graph: Graph, width: str) -> int:
    """Output channels that each channel of a width fills in the layer that makes it."""
    maker = width.partition(":")[0]
    parameters = [parameter for layer in graph.layers if layer.name == maker for parameter in layer.parameters]
    return max([1, *(dict(counts[0].widths).get(width, 1) for p in parameters if (counts := p.counts))])


def _lists(graph: Graph, config: SpaceConfig) -> dict[str, list[int | float | str]]:
    """The sizes in `config.candidates` by width and depth name."""
    full = {**graph.full.widths, **graph.full.depths}
    listed: dict[str, list[int | float | str]] = {}
    for pattern, sizes in config.candidates.items():
        matched = [name for name in full if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(
                f"space candidates: no width and no depth is called {pattern!r}{near_misses(pattern, full)}; "
                f"tas trace lists the names"
            )
        largest = max(full[name] for name in matched)
        for size in sizes:
            if isinstance(size, int) and size > largest:
                raise ConfigError(
                    f"space candidates of {pattern!r} offer {size}, but the largest of what it matches has {largest}; "
                    f"give {largest} or less, or a share such as '50%'"
                )
        listed = dict.fromkeys(matched, sizes) | listed  # the first pattern counts
    return listed
