"""What stands on an axis of a parameter: runs of channels of the widths, and positions that are never cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from tas.cost import Count


@dataclass(frozen=True)
class Run:
    """A stretch of an axis: `count` successive channels of a width, each filling `repeat` positions in a row.

    Attributes:
        width: name of the width; None for positions that are never cut.
        start: first channel of the stretch.
        count: channels in it.
        repeat: positions each channel fills (49 where 7x7 pixels were flattened).
    """

    width: str | None
    start: int
    count: int
    repeat: int = 1


Layout = tuple[Run, ...]
Place = tuple[str, int]  # (width name, channel)


def runs_of(places: Sequence[Place | None]) -> Layout | None:
    """Describe an axis in as few runs as possible; None where nothing on it is ever cut.

    Args:
        places: what lies at every position of the axis.
    """
    if not any(places):
        return None
    groups = [(place, sum(1 for _ in same)) for place, same in groupby(places)]  # one per channel, repeats counted
    runs = []
    for (times, _, _), members in groupby(enumerate(groups), _stretch):
        first, *others = (place for _, (place, _) in members)
        runs.append(Run(None, 0, times) if first is None else Run(*first, 1 + len(others), times))
    return tuple(runs)


def _stretch(item: tuple[int, tuple[Place | None, int]]) -> tuple[int, str | None, int]:
    """The same for neighbours that follow each other in one width, and repeat equally often."""
    index, (place, times) = item
    return (times, None, index) if place is None else (times, place[0], place[1] - index)


def count_of(layout: Layout) -> Count:
    """Size of an axis as a function of the widths.

    Every channel of a width occurs equally often in an axis (that is what makes it a width), so whole counts suffice.
    """
    constant = sum(run.count * run.repeat for run in layout if run.width is None)
    positions: Counter = Counter()
    channels: Counter = Counter()
    for run in layout:
        if run.width is not None:
            positions[run.width] += run.count * run.repeat
            channels[run.width] = max(channels[run.width], run.start + run.count)
    return Count(constant, tuple((width, total // channels[width]) for width, total in positions.items()))


def positions_of(layout: Layout, sizes: Mapping[str, int]) -> np.ndarray:
    """Positions of an axis that stay when each width keeps its first `sizes[width]` channels; ascending."""
    kept = []
    for run in layout:
        channels = np.arange(run.start, run.start + run.count)
        keep = np.ones(run.count, dtype=bool) if run.width is None else channels < sizes[run.width]
        kept.append(np.repeat(keep, run.repeat))
    return np.flatnonzero(np.concatenate(kept)) if kept else np.zeros(0, dtype=int)


class Whole(NamedTuple):
    """An axis that one width fills alone, all its channels in order.

    Attributes:
        width: its name.
        copies: how often all channels stand there in a row; once per group of a convolution.
        repeat: positions each channel fills; the dimension of a head in attention.
    """

    width: str
    copies: int
    repeat: int


def whole_width(layout: Layout | None) -> Whole | None:
    """What fills an axis if it is nothing but copies of one whole width; None for every other axis."""
    if not layout or any(run != layout[0] for run in layout):
        return None
    first = layout[0]
    return Whole(first.width, len(layout), first.repeat) if first.width is not None and first.start == 0 else None


def channels_of(layout: Layout, width: str) -> np.ndarray:
    """Channel of `width` at each position of an axis; -1 where another width, or none, stands."""
    parts = [
        np.repeat(
            np.arange(run.start, run.start + run.count) if run.width == width else np.full(run.count, -1), run.repeat
        )
        for run in layout
    ]
    return np.concatenate(parts)
