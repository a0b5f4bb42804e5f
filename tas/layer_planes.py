"""What single layers take and hold at a grid of their sizes: the features that a prediction of latency weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.cost import Gate, Kept
from tas.graph import Graph, Layer
from tas.lookup import Side
from tas.nn.rules import KINDS
from tas.nn.rules.base import layout_of
from tas.nn.surgery import narrow, shared_copy
from tas.progress import progress_bar
from tas.space import SearchSpace
from tas.timing import Clock, LayerTimes, signature

CONVOLUTIONS = ("convolution", "own_convolution", "transposed", "depthwise")
_FIRST = (*CONVOLUTIONS, "batch_norm", "instance_norm")  # channels are dimension 1
_TIMED = (*_FIRST, "linear", "layer_norm", "rms_norm", "group_norm")
FEATURES = 7  # times of projections and of others, weights, elements, calls, weights beyond the caches, multiply-adds
_PROJECTIONS = (*CONVOLUTIONS, "linear")


@dataclass(frozen=True)
class Plane:
    """Features of one layer on a grid of two sizes.

    Attributes:
        layer: its name.
        gate: (depth, position) when it is called in a block that can be dropped.
        sides: the widths it reads and makes, by name; a number is a size that does not change.
        grids: the sizes of both sides.
        features: (features, sizes of the first side, sizes of the second).
    """

    layer: str
    gate: Gate | None
    sides: tuple[Side, Side]
    grids: tuple[tuple[int, ...], tuple[int, ...]]
    features: np.ndarray

    def at(self, architecture: Architecture, sizes: Mapping[str, int]) -> np.ndarray:
        """(features,) of one architecture."""
        if self.gate is not None and not Kept(*self.gate).holds(architecture.depths[self.gate[0]]):
            return np.zeros(len(self.features))
        places = [
            np.interp(sizes[side] if isinstance(side, str) else side, grid, range(len(grid)))
            for side, grid in zip(self.sides, self.grids, strict=True)
        ]
        return np.array([_bilinear(plane, *places) for plane in self.features])


def _bilinear(plane: np.ndarray, row: float, column: float) -> float:
    rows, columns = (np.maximum(0, 1 - abs(np.arange(n) - p)) for n, p in zip(plane.shape, (row, column), strict=True))
    return float(rows @ plane @ columns)


def _read_shapes(
    model: nn.Module, graph: Graph, inputs: Tensor
) -> dict[nn.Module, list[tuple[Gate | None, tuple[int, ...]]]]:
    """What every layer reads in one pass of the full model, once per call: in which block, and of which shape."""
    found: dict[nn.Module, list[tuple[Gate | None, tuple[int, ...]]]] = {}
    inside: Gate | None = None

    def enter(gate: Gate | None, *_: Any) -> None:
        nonlocal inside
        inside = gate

    def note(layer: nn.Module, arguments: tuple, options: Mapping[str, Tensor]) -> None:
        inputs = arguments[0] if arguments else next(iter(options.values()))
        found.setdefault(layer, []).append((inside, tuple(inputs.shape)))

    with ExitStack() as hooks:
        for depth in graph.depths:
            for place, path in enumerate(depth.blocks[1:], 1):  # a block is called by one path, and lies in no other
                block = model.get_submodule(path)
                hooks.enter_context(block.register_forward_pre_hook(partial(enter, (depth.name, place))))
                hooks.enter_context(block.register_forward_hook(partial(enter, None)))
        for layer in {model.get_submodule(layer.name) for layer in graph.layers if layer.kind in _TIMED}:
            hooks.enter_context(layer.register_forward_pre_hook(note, with_kwargs=True))
        model(inputs)
    return found


def layer_planes(
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    inputs: Tensor,
    times: LayerTimes,
    *,
    grid: int,
    seconds: float,
    clock: Clock,
) -> tuple[list[Plane], tuple[str, ...]]:
    """Features of every layer on its grid, and the layers that have none.

    Args:
        model: the full model, in evaluation mode; not changed.
        graph: of it.
        space: the candidates.
        inputs: of the timed pass.
        times: what is known of single layers; more is measured.
        grid: sizes per width.
        seconds: spent on a layer at one point of the grid.
        clock: as in `measure_latency`.
    """
    calls = _read_shapes(model, graph, inputs)
    grids = {name: _thinned(sizes, grid) for name, sizes in space.widths.items()}
    full = dict(graph.full.widths)
    points, wanted = [], {}
    for layer in graph.layers:
        for gate, shape in calls.get(model.get_submodule(layer.name), ()) if layer.kind in _TIMED else ():
            for sides, sign in _side_pairs(layer):
                sizes = _sizes(sides, grids)
                names: dict[tuple[int, ...], tuple[str, np.ndarray]] = {}
                for place, chosen in _places(sides, sizes):
                    name, small, read = _at(model, layer, shape, {**full, **chosen})
                    wanted.setdefault(name, (small, read))
                    names[place] = name, _facts(small, read)
                points.append((layer, gate, sides, sign, sizes, names))
    rounds = 3
    missing = sum(name not in times.seconds for name in wanted)
    with progress_bar("latency", rounds * missing) as bar:
        times.measure(wanted, device=inputs.device, seconds=seconds, rounds=rounds, clock=clock, advance=bar.advance)
    planes = []
    for layer, gate, sides, sign, sizes, names in points:
        features = np.zeros((FEATURES, *map(len, sizes)))
        for place, (name, facts) in names.items():
            kind = 0 if layer.kind in _PROJECTIONS else 1
            features[(kind, *place)] = times.seconds[name] * 1e9
            features[(slice(2, 5), *place)] = facts
        # weights that no cache holds beside all others are fetched anew in every pass: of a large network, most are
        features[5] = features[2] ** 2 / max(1, features[2].max())
        planes.append(Plane(layer.name, gate, sides, sizes, sign * features))
    planes += _untimed_planes(graph, grids)
    known = {plane.layer for plane in planes}
    return planes, tuple(layer.name for layer in graph.layers if layer.name not in known)


def _untimed_planes(graph: Graph, grids: Mapping[str, tuple[int, ...]]) -> Iterator[Plane]:
    """Multiply-adds of what is no layer that could be timed alone, such as products of activations in attention."""
    full = dict(graph.full.widths)
    for layer in graph.layers:
        for coefficient, factors in layer.products if layer.kind not in _TIMED else ():
            names = list(dict.fromkeys(name for count in factors for name, _ in count.widths))
            if not 0 < len(names) < 3:
                continue
            sides: tuple[Side, Side] = (names[0], names[1] if len(names) == 2 else 0)
            sizes = _sizes(sides, grids)
            features = np.zeros((FEATURES, *map(len, sizes)))
            for place, chosen in _places(sides, sizes):
                features[(6, *place)] = coefficient * prod(count.of({**full, **chosen}) for count in factors)
            yield Plane(layer.name, layer.gate, sides, sizes, features)


def _sizes(sides: tuple[Side, Side], grids: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    one, other = (grids[side] if isinstance(side, str) else (side,) for side in sides)
    return one, other


def _places(
    sides: tuple[Side, Side], sizes: tuple[tuple[int, ...], tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], dict[str, int]]]:
    """Every point of a grid, and the sizes of its widths there."""
    for place in product(*(range(len(grid)) for grid in sizes)):
        yield place, {s: g[p] for s, g, p in zip(sides, sizes, place, strict=True) if isinstance(s, str)}


def _thinned(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the candidates, the ends among them."""
    places = np.linspace(0, len(sizes) - 1, min(most, len(sizes))).round().astype(int) if most > 1 else [-1]
    return tuple(sizes[place] for place in places)


def _side_pairs(layer: Layer) -> list[tuple[tuple[Side, Side], int]]:
    """Pairs of widths whose functions, each with its sign, add up to what the layer takes.

    A layer that reads several widths takes a + b · Σ read: the sum over them, each with the others at full size and
    with the width that is made, counts what is full once too often for every width but one.
    """
    names = list(dict.fromkeys(n for item in layer.parameters for count in item.counts for n, _ in count.widths))
    if len(names) < 3:
        one, other = (*names, 0, 0)[:2]
        return [((one, other), 1)]
    made = [layout_of(layer, name, dim) for name, dim in KINDS[layer.kind].makes.items()]
    makes = [run.width for layout in made for run in layout or () if run.width is not None]
    shared: Side = makes[-1] if makes else 0
    read = [name for name in names if name != shared]
    return [*(((name, shared), 1) for name in read), *[((0, shared), -1)] * (len(read) - 1)]


def _at(
    model: nn.Module, layer: Layer, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> tuple[str, nn.Module, tuple[int, ...]]:
    """Signature, narrowed layer on the meta device, where nothing is stored, and shape of its input."""
    small, read = shared_copy(model.get_submodule(layer.name)).to("meta"), list(shape)
    narrow(small, layer, sizes)
    dim = 1 if layer.kind in _FIRST else -1 if layer.kind == "linear" else layer.channel_dim
    read[dim] = (
        getattr(small, "in_features" if layer.kind == "linear" else "in_channels")
        if layer.kind in _PROJECTIONS
        else next(chain(small.parameters(), small.buffers())).shape[0]
    )
    return signature(small, tuple(read)), small, tuple(read)


def _facts(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """Weights, elements read, and one call."""
    return np.array([sum(p.numel() for p in layer.parameters()), np.prod(shape), 1.0])
