"""The cheapest architecture of a space.

The smallest candidate of everything, unless widths that shortcuts connect begin at different sizes: a projection that
larger channels would save may cost more than they do. Then single changes and changes of whole streams are tried until
none makes it cheaper; the tests compare the outcome with enumeration.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tas.architecture import Architecture
from tas.cost import CostTable
from tas.graph import Graph
from tas.space import SearchSpace

Load = Callable[[np.ndarray], np.ndarray]  # (architectures, choices), candidate indices, to (architectures,)


def cheapest(graph: Graph, space: SearchSpace, quantity: str) -> Architecture:
    """The architecture with the fewest `macs` or `params`."""
    table = CostTable(graph.cost(quantity), space.widths, space.depths)
    choice = cheapest_choice(graph, space, table.exact)
    sizes = [row[index] for row, index in zip(_rows(space), choice.tolist(), strict=True)]
    count = len(space.widths)
    return Architecture(
        dict(zip(space.widths, sizes[:count], strict=True)), dict(zip(space.depths, sizes[count:], strict=True))
    )


def cheapest_choice(graph: Graph, space: SearchSpace, load: Load) -> np.ndarray:
    """(choices,), candidate indices of the architecture with the least load, which grows with every size."""
    best = np.zeros(len(_rows(space)), dtype=int)
    firsts = [{space.widths[name][0] for name in space.widths if name in stream} for stream in graph.streams]
    if all(len(sizes) < 2 for sizes in firsts) and not any(_stays(graph, space)):
        return best
    singles = [[(row, column)] for row, sizes in enumerate(_rows(space)) for column in range(len(sizes))]
    moves = [*singles, *stream_moves(graph, space)]
    least = load(best[None])[0]
    while True:
        trials = np.repeat(best[None], len(moves), axis=0)
        for trial, move in zip(trials, moves, strict=True):
            for row, column in move:
                trial[row] = column
        loads = load(trials)
        if loads.min() >= least:
            return best
        best, least = trials[int(loads.argmin())], loads.min()


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
