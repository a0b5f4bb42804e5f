"""The cheapest architecture of a space.

The smallest candidate of everything, unless widths that shortcuts connect begin at different sizes: a projection that
larger channels would save may cost more than they do. Then single changes and changes of whole streams are tried until
none makes it cheaper; the tests compare the outcome with enumeration. Nor need a smaller size take less time: of a
measured cost, several starts are improved so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tas.architecture import Architecture
from tas.cost import CostTable
from tas.graph import Graph
from tas.space import SearchSpace

STARTS = 8  # random ones, where cost need not grow with size
Load = Callable[[np.ndarray], np.ndarray]  # (architectures, choices), candidate indices, to (architectures,)


def cheapest(graph: Graph, space: SearchSpace, quantity: str) -> Architecture:
    """The architecture with the fewest `macs` or `params`, or the least `latency`."""
    cost = graph.cost(quantity)
    table = CostTable(cost, space.widths, space.depths)
    choice = cheapest_choice(graph, space, table.exact, grows=not cost.is_measured)
    sizes = [row[index] for row, index in zip(_rows(space), choice.tolist(), strict=True)]
    count = len(space.widths)
    return Architecture(
        dict(zip(space.widths, sizes[:count], strict=True)), dict(zip(space.depths, sizes[count:], strict=True))
    )


def cheapest_choice(graph: Graph, space: SearchSpace, load: Load, *, grows: bool = True) -> np.ndarray:
    """(choices,), candidate indices of the architecture with the least load.

    Args:
        graph: of the model.
        space: the candidates.
        load: of architectures.
        grows: whether it grows with every size, projections aside.
    """
    counts = np.array([len(sizes) for sizes in _rows(space)], dtype=int)
    best = np.zeros(len(counts), dtype=int)
    firsts = [{space.widths[name][0] for name in space.widths if name in stream} for stream in graph.streams]
    if grows and all(len(sizes) < 2 for sizes in firsts) and not any(_stays(graph, space)):
        return best
    moves = [[(row, column)] for row, count in enumerate(counts) for column in range(count)]
    moves += stream_moves(graph, space)
    if grows or not moves:
        return _descended(best, moves, load)
    draw = np.random.default_rng(0)
    starts = [best, counts - 1, *draw.integers(0, counts, (STARTS, len(counts)))]
    return min((_descended(start, moves, load) for start in starts), key=lambda choice: load(choice[None])[0])


def _descended(choice: np.ndarray, moves: list[list[tuple[int, int]]], load: Load) -> np.ndarray:
    """Take the change that saves most until none does."""
    least = load(choice[None])[0]
    while True:
        trials = np.repeat(choice[None], len(moves), axis=0)
        for trial, move in zip(trials, moves, strict=True):
            for row, column in move:
                trial[row] = column
        loads = load(trials)
        if loads.min() >= least:
            return choice
        choice, least = trials[int(loads.argmin())], loads.min()


def stream_moves(graph: Graph, space: SearchSpace) -> list[list[tuple[int, int]]]:
    """For every stream and every size, the (row, column) of each width that bring all of them to it, or just above."""
    rows, moves = {name: row for row, name in enumerate(space.widths)}, []
    for stream in graph.streams:
        names = [name for name in space.widths if name in stream]
        for size in sorted({size for name in names for size in space.widths[name]}):
            columns = [
                next((c for c, found in enumerate(space.widths[n]) if found >= size), len(space.widths[n]) - 1)
                for n in names
            ]
            moves.append([(rows[name], column) for name, column in zip(names, columns, strict=True)])
    return moves


def _rows(space: SearchSpace) -> list[tuple[int, ...]]:
    return [*space.widths.values(), *space.depths.values()]


def _stays(graph: Graph, space: SearchSpace) -> list[bool]:
    """Of every stream, whether some of its channels are never cut while others can be."""
    return [
        None in stream and any(len(sizes) > 1 for name, sizes in space.widths.items() if name in stream)
        for stream in graph.streams
    ]
