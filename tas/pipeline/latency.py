"""Predict what architectures take on this machine, from times of single layers and of a few small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.cost import Gate, Kept
from tas.decode import decode
from tas.errors import BudgetError, ConfigError
from tas.graph import Graph, Layer
from tas.latency import Latency, Part
from tas.lookup import Lookup, Side
from tas.nn.rules import KINDS
from tas.nn.rules.base import layout_of
from tas.nn.surgery import cut, narrow, require_fit, shared_copy
from tas.options import check_options
from tas.progress import progress_bar
from tas.run import GRAPH
from tas.space import SearchSpace
from tas.timing import Clock, LayerTimes, device_name, measure_latency, signature, thread_count

CACHE = "~/.cache/tas"
_FIRST = ("convolution", "transposed", "depthwise", "batch_norm", "instance_norm")  # channels are dimension 1
_TIMED = (*_FIRST, "linear", "layer_norm", "rms_norm", "group_norm")
_PROJECTIONS = ("convolution", "transposed", "depthwise", "linear")


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How latency is predicted; it is measured only where a budget bounds it.

    Attributes:
        threads: of a pass on a CPU; 0 is as many as torch uses.
        clock: wall, or cpu: the time a CPU has spent, which other processes on the machine do not lengthen.
        grid: sizes per width at which layers are timed, spread over its candidates; others lie between them.
        models: small models that are timed whole, to fit what single layers do not show: so many random ones, and so
            many of those that a budget would choose.
        seconds: time spent on a layer at one point of the grid; a whole model gets twenty times as much.
        cache: folder where times of layers are kept for later runs; empty keeps none.
    """

    threads: int = 0
    clock: Clock = "wall"
    grid: int = 8
    models: int = 12
    seconds: float = 0.02
    cache: str = CACHE

    def __post_init__(self):
        check_options(self, "latency", above_zero=("grid", "models", "seconds"), not_negative=("threads",))
        if self.clock == "cpu" and self.threads != 1:
            raise ConfigError(f"latency clock cpu needs one thread, not {self.threads}; add threads 1")


@dataclass(frozen=True)
class _Plane:
    """Features of one layer on a grid of two sizes.

    Attributes:
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


def with_latency(
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    example: Tensor,
    *,
    batch: int = 1,
    config: LatencyConfig | None = None,
) -> Graph:
    """The same graph, which also knows what every architecture takes on this machine.

    Every layer is timed alone at a grid of its widths' sizes. What passes through memory between layers, and what
    calling them costs, cannot be seen there: a least-squares fit to some small models, timed whole and in turns, weighs
    times of projections and of norms, numbers of weights, activations and layers, none of them negative. Then as many
    architectures are timed that decoding chooses under budgets of latency, and the fit is made again: a choice under a
    budget goes where predictions are too low.

    Args:
        model: the full model, on the device it is timed on; not changed but for its mode.
        graph: traced from it.
        space: the candidates.
        example: one input, batch first.
        batch: samples in a pass.
        config: see `LatencyConfig`.

    Raises:
        BudgetError: the graph has free residuals, whose projections cannot be predicted yet.
        ModelError: the graph does not fit the model.
    """
    config = config or LatencyConfig()
    if graph.shortcuts:
        raise BudgetError("a latency cannot be a budget with free residuals yet; use tied ones, or give macs or params")
    require_fit(model, graph)
    device = next(model.parameters()).device
    with thread_count(config.threads), torch.no_grad():
        setting = {
            "device": device_name(device), "kind": device.type, "threads": torch.get_num_threads(), "batch": batch,
            "clock": config.clock, "memory": "kept", "dtype": str(next(model.parameters()).dtype),
            "torch": torch.__version__,
        }  # fmt: skip
        times = LayerTimes(Path(config.cache) if config.cache else None, setting)
        planes, untimed = _planes(
            model.eval(),
            graph,
            space,
            example[:1].to(device).expand(batch, *example.shape[1:]).contiguous(),
            times,
            config,
        )

        tried = [graph.full, *_sample(graph, space, config.models)]
        measured = _nanoseconds(model, graph, tried[1:], example, batch, config)
        known = setting["device"], setting["threads"], batch, untimed
        chosen = _chosen(_predicting(graph, planes, tried, measured, *known), space, config.models)
        again = _nanoseconds(model, graph, chosen, example, batch, config)
    return _predicting(
        graph, planes, [*tried, *chosen], np.append(measured, again[1:] * measured[0] / again[0]), *known
    )


def _nanoseconds(
    model: nn.Module,
    graph: Graph,
    architectures: Sequence[Architecture],
    example: Tensor,
    batch: int,
    config: LatencyConfig,
) -> np.ndarray:
    """What the full model and these take, in turn."""
    small = [cut(model, graph, architecture, share_the_rest=True).eval() for architecture in architectures]
    found = measure_latency(
        [model, *small], example, batch=batch, seconds=20 * config.seconds, clock=config.clock, undisturbed=True
    )
    return np.array([median * 1e6 for median, _ in found])


def _predicting(
    graph: Graph, planes: Sequence[_Plane], architectures: Sequence[Architecture], measured: np.ndarray, device: str,
    threads: int, batch: int, untimed: tuple[str, ...],
) -> Graph:  # fmt: skip
    """The graph with a fit to these; the first is the full model, whose time is met."""
    weights, error = _fit(planes, graph, architectures, measured)
    latency = Latency(
        tuple(_part(plane, weights[:-1]) for plane in planes), 0, device, threads, batch,
        round(measured[0] / 1e6, 4), round(error, 4), untimed,
    )  # fmt: skip
    rest = round(measured[0]) - replace(graph, latency=latency).cost("latency").exact(graph.full)
    return replace(graph, latency=replace(latency, rest=max(0, rest)))


def latency_of_run(
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    example: Tensor,
    *,
    batch: int,
    config: LatencyConfig,
    folder: str | Path | None,
) -> Graph:
    """As `with_latency`; but a run that goes on keeps its own measurements: times never repeat exactly.

    Args:
        model: the full model.
        graph: of it.
        space: the candidates.
        example: one input, batch first.
        batch: samples in a pass.
        config: see `LatencyConfig`.
        folder: of the run that goes on; None measures.
    """
    known = known_latency(folder)
    return (
        replace(graph, latency=known)
        if known
        else with_latency(model, graph, space, example, batch=batch, config=config)
    )


def known_latency(folder: str | Path | None) -> Latency | None:
    """What an interrupted run in this folder has measured; None where it has not come so far."""
    try:
        return Graph.from_json((Path(folder) / GRAPH).read_text(encoding="utf-8")).latency if folder else None
    except OSError:
        return None


def _sample(graph: Graph, space: SearchSpace, count: int) -> list[Architecture]:
    """The smallest architecture, and random ones of every size between it and the full model; always the same."""
    draw, found = np.random.default_rng(0), [space.smallest]
    for share in np.linspace(0, 1, count - 1):
        picked = {
            name: sizes[min(len(sizes) - 1, int(len(sizes) * np.clip(share + draw.uniform(-0.4, 0.4), 0, 0.999)))]
            for name, sizes in (*space.widths.items(), *space.depths.items())
        }
        found.append(
            Architecture({name: picked[name] for name in space.widths}, {name: picked[name] for name in space.depths})
        )
    return found[:count]


def _chosen(graph: Graph, space: SearchSpace, count: int) -> list[Architecture]:
    """What decoding makes of random scores under budgets of latency: where predictions are too low, it goes.

    Larger sizes have higher scores, with diminishing returns, as after a search.
    """
    draw, found = np.random.default_rng(1), []
    for share in np.linspace(0.35, 0.9, count):
        gains = {name: np.sort(draw.exponential(size=len(sizes)))[::-1] for name, sizes in
                 (*space.widths.items(), *space.depths.items())}  # fmt: skip
        try:
            architecture = decode(
                {name: row.cumsum().tolist() for name, row in gains.items()}, graph, space,
                Budget(latency=f"{100 * share:.0f}%"),
            )  # fmt: skip
        except BudgetError:
            continue  # not so fast, whatever is cut
        found.append(architecture)
    return list(dict.fromkeys(found))


def _read_shapes(model: nn.Module, graph: Graph, inputs: Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Shapes that every layer reads in one pass of the full model, once per call."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str):
        def hook(_module: nn.Module, arguments: tuple) -> None:
            found.setdefault(name, []).append(tuple(arguments[0].shape))

        return hook

    hooks = [model.get_submodule(x.name).register_forward_pre_hook(note(x.name)) for x in graph.layers
             if x.kind in _TIMED]  # fmt: skip
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _planes(
    model: nn.Module, graph: Graph, space: SearchSpace, inputs: Tensor, times: LayerTimes, config: LatencyConfig
) -> tuple[list[_Plane], tuple[str, ...]]:
    """Features of every layer on its grid, and the layers that were not timed."""
    shapes = _read_shapes(model, graph, inputs)
    grids = {name: _thinned(sizes, config.grid) for name, sizes in space.widths.items()}
    full = dict(graph.full.widths)
    points, wanted = [], {}
    for layer in graph.layers:
        for shape in shapes.get(layer.name, ()):
            for sides, sign in _side_pairs(layer):
                sizes = [grids[side] if isinstance(side, str) else (side,) for side in sides]
                names: dict[tuple[int, ...], tuple[str, np.ndarray]] = {}
                for place in product(*(range(len(grid)) for grid in sizes)):
                    chosen = {s: g[p] for s, g, p in zip(sides, sizes, place, strict=True) if isinstance(s, str)}
                    name, small, read = _at(model, layer, shape, {**full, **chosen})
                    wanted.setdefault(name, (small, read))
                    names[place] = name, _facts(small, read)
                points.append((layer, sides, sign, sizes, names))
    rounds = 3
    missing = sum(name not in times.seconds for name in wanted)
    with progress_bar("latency", rounds * missing) as bar:
        times.measure(
            wanted, device=inputs.device, seconds=config.seconds, rounds=rounds, clock=config.clock, advance=bar.advance
        )
    planes = []
    for layer, sides, sign, sizes, names in points:
        features = np.zeros((5, *map(len, sizes)))
        for place, (name, facts) in names.items():
            kind = 0 if layer.kind in _PROJECTIONS else 1
            features[(kind, *place)] = times.seconds[name] * 1e9
            features[(slice(2, 5), *place)] = facts
        planes.append(_Plane(layer.name, layer.gate, sides, (sizes[0], sizes[1]), sign * features))
    return planes, tuple(layer.name for layer in graph.layers if layer.name not in shapes)


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
    held = {"convolution": "in_channels", "transposed": "in_channels", "depthwise": "in_channels",
            "linear": "in_features"}  # fmt: skip
    read[dim] = getattr(small, held[layer.kind]) if layer.kind in held else next(small.parameters()).shape[0]
    return signature(small, tuple(read)), small, tuple(read)


def _facts(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """Weights, elements read, and one call."""
    return np.array([sum(p.numel() for p in layer.parameters()), np.prod(shape), 1.0])


def _fit(
    planes: Sequence[_Plane], graph: Graph, architectures: Sequence[Architecture], measured: np.ndarray
) -> tuple[np.ndarray, float]:
    """Weights of the features and of a constant, scaled so that the first is exact; and the others' median error."""
    from scipy.optimize import nnls

    facts = np.array([
        np.append(sum(plane.at(a, graph.sizes(a)) for plane in planes), 1.0) for a in architectures
    ])  # fmt: skip
    trust = np.where(np.arange(len(measured)) == 0, 3.0, 1.0) / measured  # shares count, and most of all the full model
    weights, _ = nnls(facts * trust[:, None], trust * measured)
    weights = weights * measured[0] / (facts[0] @ weights)
    errors = np.abs(facts[1:] @ weights / measured[1:] - 1)
    return weights, float(np.median(errors)) if len(errors) else 0.0


def _part(plane: _Plane, weights: np.ndarray) -> Part:
    values = np.rint(np.tensordot(weights, plane.features, 1)).astype(int)
    return Part(plane.layer, plane.gate, Lookup(plane.sides, plane.grids, tuple(map(tuple, values.tolist()))))
