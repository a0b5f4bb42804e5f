"""The cheapest architecture of a space.

The smallest candidate of everything, unless widths that shortcuts connect begin at different sizes: a projection that
larger channels would save may cost more than they do. Then single changes and changes of whole streams are tried until
none makes it cheaper; the tests compare the outcome with enumeration. Nor need a smaller size take less time: of a
measured cost, several starts are improved so.
"""

from __future__ import annotations

import numpy as np

from tas.architecture import Architecture
from tas.graph import Graph
from tas.moves import Loads, Moves
from tas.space import SearchSpace

STARTS = 8  # random ones, where cost need not grow with size


def cheapest(graph: Graph, space: SearchSpace, quantity: str) -> Architecture:
    """The architecture with the fewest `macs` or `params`, or the least `latency`."""
    rows = space.choices.values()
    columns = np.arange(max(map(len, rows), default=1))
    is_open = columns < np.array([len(sizes) for sizes in rows], dtype=int)[:, None]
    return space.architecture(
        cheapest_choice(Moves(graph, space, Loads(graph, space, {quantity: 1}), is_open)).tolist()
    )


def cheapest_choice(moves: Moves) -> np.ndarray:
    """(choices,), candidate indices of the open architecture with the least load."""
    is_open = moves.is_open
    best = is_open.argmax(1)
    first = {name: sizes[best[row]] for row, (name, sizes) in enumerate(moves.space.widths.items())}
    firsts = [{size for name, size in first.items() if name in stream} for stream in moves.graph.streams]
    if not len(moves) or (moves.load.grows and all(len(sizes) < 2 for sizes in firsts) and not any(_stays(moves))):
        return best
    if moves.load.grows:
        return _descended(best, moves)
    draw, counts = np.random.default_rng(0), is_open.sum(1)
    places = [np.zeros_like(counts), counts - 1, *draw.integers(0, counts, (STARTS, len(counts)))]
    columns = np.argsort(~is_open, axis=1, kind="stable")  # the open ones first
    starts = [columns[np.arange(len(counts)), place] for place in places]
    return min((_descended(start, moves) for start in starts), key=lambda choice: moves.load.of(choice[None])[0])


def _descended(choice: np.ndarray, moves: Moves) -> np.ndarray:
    """Take the change that saves most until none does."""
    least = moves.load.of(choice[None])[0]
    while True:
        loads = moves.loads(choice[None])[0]
        if loads.min() >= least:
            return choice
        choice, least = moves.made(choice, int(loads.argmin())), loads.min()


def _stays(moves: Moves) -> list[bool]:
    """Of every stream, whether some of its channels are never cut while others can be."""
    can_be_cut = dict(zip(moves.space.widths, moves.is_open.sum(1) > 1, strict=False))
    return [
        None in stream and any(is_open for name, is_open in can_be_cut.items() if name in stream)
        for stream in moves.graph.streams
    ]
