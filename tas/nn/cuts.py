"""Architectures with which the self-check tries a graph."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Set

from tas.architecture import Architecture
from tas.graph import Attribute, Graph
from tas.nn.rules import KINDS

_GIANT = 10_000_000_000  # macs
_MOST = 2  # sizes of channels that stay, the next smaller ones


def architectures_to_try(graph: Graph, seed: int) -> list[Architecture]:
    """A small architecture, and some that cut widths of one size to different sizes: a forward may mix them up.

    Those keep every block: what a dropped block does wrong is not seen. Where stages of free blocks hand on the width
    of the last one that is kept, one more drops some.
    """
    draw, full = random.Random(seed), graph.full
    counts = Counter(full.widths.values())
    # where there are more widths of a size than sizes to draw, two of them may get the same by chance; a giant, whose
    # trials take long, has so many channels that the streams differ
    has_many = any(count > len(_sizes(size)) for size, count in counts.items())
    repeats = 3 if has_many and graph.macs() < _GIANT else 1
    mixed = [_mixed(graph, draw) for _ in range(repeats)]
    if graph.exits:
        fewer = {name: draw.randint(1, size) for name, size in full.depths.items()}
        mixed.append(Architecture(_mixed(graph, draw).widths, fewer))
    heads = _heads(graph)  # a wrong number of them fails nowhere, and is hardly seen where attention has little to read
    return [small(graph), *([halved(graph, heads)] if heads else []), *mixed]


def _sizes(size: int) -> range:
    """What a width of many channels is cut to is small: the trial is cheap."""
    return range(1, max(2, size if size <= 16 else size // 2 + 1))


def _mixed(graph: Graph, draw: random.Random) -> Architecture:
    left: dict[int, list[int]] = {}
    widths: dict[str, int] = {}
    for width in sorted(graph.widths, key=lambda width: width.name):
        size = width.size
        if not left.get(size):
            left[size] = draw.sample(_sizes(size), len(_sizes(size)))
        widths[width.name] = width.allowed(left[size].pop())
    return Architecture(widths, graph.full.depths)


def small(graph: Graph) -> Architecture:
    """Three tenths of every width, the first block of every depth."""
    widths = {width.name: width.allowed(width.size * 3 // 10) for width in graph.widths}
    return Architecture(widths, dict.fromkeys(graph.full.depths, 1))


def cut_only(graph: Graph, names: Set[str], trial: Architecture) -> Architecture:
    """These widths and depths as in a trial, all of the others."""
    full = graph.full
    return Architecture(
        {name: trial.widths[name] if name in names else size for name, size in full.widths.items()},
        {name: trial.depths[name] if name in names else size for name, size in full.depths.items()},
    )


def cut_to(graph: Graph, sizes: Mapping[str, int]) -> Architecture:
    """These widths cut to these sizes, all else whole."""
    return Architecture({**graph.full.widths, **sizes}, graph.full.depths)


def halved(graph: Graph, names: Set[str]) -> Architecture:
    """These widths cut to half, all else whole, so that nothing fades before it is seen."""
    return cut_to(graph, {width.name: width.allowed(width.size // 2) for width in graph.widths if width.name in names})


def _heads(graph: Graph) -> set[str]:
    """Widths of which a layer makes several positions for every channel."""
    axes = [item.layouts[0] or () for layer in graph.layers for item in layer.parameters if item.layouts]
    return {run.width for axis in axes for run in axis if run.width is not None and run.repeat > 1}


def sizes_compared(graph: Graph, compared: Mapping[Attribute, Iterable[int]]) -> list[tuple[str, int]]:
    """Sizes of widths at which a number that follows one equals what it was compared with in the full model."""
    full = graph.full.widths
    found = [
        (item.count.widths[0][0], other)
        for item, others in compared.items()
        for other in others
        if item.count.constant == 0 and [times for _, times in item.count.widths] == [1]
    ]
    return [(name, size) for name, size in dict.fromkeys(found) if name in full and 1 <= size < full[name]]


def architectures_alike(graph: Graph) -> list[Architecture]:
    """All widths as large as the smallest: a forward may ask whether two shapes are equal."""
    heads = _heads(graph)
    widths = [width for width in graph.widths if width.name not in heads]
    sizes, no = {width.size for width in widths}, _sizes_that_stay(graph).union(*(width.excluded for width in widths))
    if len(sizes) < 2:
        return []
    size = next((size for size in range(min(sizes), 0, -1) if size not in no), min(sizes))
    return [cut_to(graph, {width.name: min(size, width.size) for width in widths})]


def architectures_like_others(graph: Graph) -> list[Architecture]:
    """Every width as large as channels that stay, and are read: a forward may ask that, too."""
    stay = sorted(_sizes_that_stay(graph), reverse=True)
    smaller = {
        width.name: [size for size in stay if size < width.size and size not in width.excluded]
        for width in graph.widths
    }
    return [
        cut_to(graph, {name: sizes[place] for name, sizes in smaller.items() if sizes[place:]})
        for place in range(min(_MOST, max(map(len, smaller.values()), default=0)))
    ]


def _sizes_that_stay(graph: Graph) -> set[int]:
    """How many channels those layers make that are not cut; those of outputs are compared with nothing."""
    outputs = {item.axis for item in graph.frozen if item.reason == "output of the model"}
    return {
        item.shape[dim]
        for layer in graph.layers
        for item in layer.parameters
        if (dim := KINDS[layer.kind].makes.get(item.short)) is not None
        and not item.layouts[dim]
        and f"{item.name}[{dim}]" not in outputs
    }
