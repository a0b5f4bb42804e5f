"""Predict what architectures take on this machine, from times of single layers and of a few small models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.decode import decode
from tas.errors import BudgetError, ConfigError
from tas.graph import Graph
from tas.latency import Latency, Part
from tas.layer_planes import CONVOLUTIONS, Plane, layer_planes
from tas.lookup import Lookup
from tas.nn.modes import evaluating
from tas.nn.rules import KINDS
from tas.nn.surgery import cut, require_fit
from tas.onnx_file import in_onnx_runtime, require_packages
from tas.onnx_layer import layer_in_onnx_runtime
from tas.options import check_options, or_default
from tas.profile import RUNTIMES, Runtime
from tas.progress import progress_bar
from tas.run import GRAPH
from tas.space import SearchSpace
from tas.timing import Clock, LayerTimes, device_name, measure_latency, thread_count

CACHE = "~/.cache/tas"
HELD = 0.8  # share of the small models whose prediction is off by no more than what is kept back of a budget
NEAR, FAR = 0.25, 0.05  # in the fit for a budget: what differs by such a factor still counts; what everything does
BLOCK = 8  # channels that lie together in ONNX Runtime's convolutions on a processor; with AVX-512 16 of them


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How latency is predicted; it is measured only where a budget bounds it.

    Attributes:
        runtime: that the small network will run in: pytorch, or onnxruntime, for which two dozen networks are exported;
            its convolutions want candidates in multiples of 8.
        threads: of a pass on a CPU; 0 is as many as torch uses.
        clock: wall, or cpu: the time a CPU has spent, which other processes on the machine do not lengthen.
        grid: sizes per width at which layers are timed, spread over its candidates; others lie between them.
        models: small models that are timed whole, to fit what single layers do not show: so many random ones, and so
            many of those that a budget would choose.
        seconds: time spent on a layer at one point of the grid; a whole model gets twenty times as much.
        cache: folder where times of layers are kept for later runs; empty keeps none.
    """

    runtime: Runtime = "pytorch"
    threads: int = 0
    clock: Clock = "wall"
    grid: int = 8
    models: int = 12
    seconds: float = 0.02
    cache: str = CACHE

    def __post_init__(self):
        check_options(self, "latency", above_zero=("grid", "models", "seconds"), not_negative=("threads",))
        if self.runtime not in RUNTIMES:
            raise ConfigError(f"latency runtime is {self.runtime!r}; it can be {' or '.join(RUNTIMES)}")
        if self.clock == "cpu" and self.threads != 1:
            raise ConfigError(f"latency clock cpu needs one thread, not {self.threads}; add threads 1")


def with_latency(
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    example: Tensor,
    *,
    batch: int = 1,
    budgets: Sequence[Budget] = (),
    config: LatencyConfig | None = None,
) -> Graph:
    """The same graph, which also knows what every architecture takes on this machine.

    Every layer is timed alone at a grid of its widths' sizes. What passes through memory between layers, and what
    calling them costs, cannot be seen there: a least-squares fit to some small models, timed whole and in turns, weighs
    times of projections and of norms, multiply-adds between activations (attention), numbers of weights, activations
    and layers, none of them negative. A layer's weights count once more in the square, since no cache holds those of a
    large model. Then as many architectures are timed that decoding chooses under the budgets, in two turns, and the fit
    is made again, with most weight on what takes about as long: a choice under a budget goes where predictions are too
    low, and what holds for models of other sizes, which caches hold or do not, matters little there.

    Args:
        model: the full model, on the device it is timed on; not changed but for its mode.
        graph: traced from it.
        space: the candidates.
        example: one input, batch first.
        batch: samples in a pass.
        budgets: that will be decoded; without one that bounds the latency, some between 35 and 90 % of it.
        config: see `LatencyConfig`.

    Raises:
        BudgetError: the graph has free residuals, whose projections cannot be predicted yet.
        ModelError: the graph does not fit the model, or ONNX Runtime cannot run it.
        ConfigError: ONNX Runtime is missing, cannot use the device, or would not be faster with these candidates.
    """
    config = or_default(config, LatencyConfig)
    _require_possible(model, graph, space, config)
    budgets = [budget for budget in budgets if budget.latency is not None]
    with thread_count(config.threads), torch.no_grad():
        planes, blank = _timed_layers(model, graph, space, example, batch, config)
        tried = [graph.full, *_sample(graph, space, config.models)]
        measured = _nanoseconds(model, graph, tried[1:], example, batch, config)
        found = _predicting(graph, blank, planes, tried, measured, [])
        for seed, count in enumerate((config.models - config.models // 2, config.models // 2)):
            goals = budgets or [Budget(latency=f"{share:.0f}%") for share in np.linspace(35, 90, count)]
            chosen = [one for one in _chosen(found, space, goals, count, seed) if one not in tried]
            again = _nanoseconds(model, graph, chosen, example, batch, config)
            tried, measured = [*tried, *chosen], np.append(measured, again[1:] * measured[0] / again[0])
            targets = [budget.limits(found)["latency"] for budget in budgets]
            found = _predicting(graph, blank, planes, tried, measured, targets)
    return found


def _require_possible(model: nn.Module, graph: Graph, space: SearchSpace, config: LatencyConfig) -> None:
    if graph.shortcuts:
        raise BudgetError("a latency cannot be a budget with free residuals yet; use tied ones, or give macs or params")
    if config.runtime == "onnxruntime":
        require_packages("a budget of latency under ONNX Runtime")
    require_fit(model, graph)
    if config.runtime == "onnxruntime" and next(model.parameters()).device.type == "cpu":
        _require_whole_blocks(graph, space)


def _timed_layers(
    model: nn.Module, graph: Graph, space: SearchSpace, example: Tensor, batch: int, config: LatencyConfig
) -> tuple[list[Plane], Latency]:
    """Features of every layer, and the setting they were timed in, as a latency that predicts nothing yet."""
    first, setting, runs = next(model.parameters()), {}, {}
    if config.runtime == "onnxruntime":
        import onnxruntime

        setting, runs = {"onnxruntime": onnxruntime.__version__}, {"runs": layer_in_onnx_runtime}
    name, threads = device_name(first.device), torch.get_num_threads()
    setting |= {
        "device": name, "kind": first.device.type, "threads": threads, "batch": batch, "clock": config.clock,
        "memory": "kept", "dtype": str(first.dtype), "torch": torch.__version__,
    }  # fmt: skip
    times = LayerTimes(Path(config.cache) if config.cache else None, setting, **runs)
    inputs = example[:1].to(first.device).expand(batch, *example.shape[1:]).contiguous()
    planes, untimed = layer_planes(
        evaluating(model), graph, space, inputs, times, grid=config.grid, seconds=config.seconds, clock=config.clock
    )
    return planes, Latency((), 0, name, threads, batch, 0.0, 0.0, untimed, config.runtime)


def _nanoseconds(
    model: nn.Module,
    graph: Graph,
    architectures: Sequence[Architecture],
    example: Tensor,
    batch: int,
    config: LatencyConfig,
) -> np.ndarray:
    """What the full model and these take, in turn."""
    timed: list[nn.Module] = []
    with progress_bar("latency of whole networks", len(architectures)) as bar:
        for architecture in (None, *architectures):
            small = model if architecture is None else cut(model, graph, architecture, share_the_rest=True)
            timed.append(in_onnx_runtime(small, example) if config.runtime == "onnxruntime" else evaluating(small))
            bar.advance(steps=architecture is not None)
    found = measure_latency(
        timed, example, batch=batch, seconds=20 * config.seconds, clock=config.clock, undisturbed=True
    )
    return np.array([median * 1e6 for median, _ in found])


def _predicting(
    graph: Graph, blank: Latency, planes: Sequence[Plane], architectures: Sequence[Architecture], measured: np.ndarray,
    targets: Sequence[float],
) -> Graph:  # fmt: skip
    """The graph with a fit to these, of which the first is the full model."""
    weights, error = _fit(planes, graph, architectures, measured, targets)
    parts = tuple(_part(plane, weights[:-1]) for plane in planes)
    full_ms = round(measured[0] / 1e6, 4)
    return replace(
        graph, latency=replace(blank, parts=parts, rest=round(weights[-1]), full_ms=full_ms, error=round(error, 4))
    )


def latency_of_run(
    model: nn.Module,
    graph: Graph,
    space: SearchSpace,
    example: Tensor,
    *,
    batch: int,
    budgets: Sequence[Budget],
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
        budgets: that will be decoded.
        config: see `LatencyConfig`.
        folder: of the run that goes on; None measures.
    """
    known = known_latency(folder)
    return (
        replace(graph, latency=known)
        if known
        else with_latency(model, graph, space, example, batch=batch, budgets=budgets, config=config)
    )


def known_latency(folder: str | Path | None) -> Latency | None:
    """What an interrupted run in this folder has measured; None where it has not come so far."""
    try:
        return Graph.from_json((Path(folder) / GRAPH).read_text(encoding="utf-8")).latency if folder else None
    except OSError:
        return None


def _require_whole_blocks(graph: Graph, space: SearchSpace) -> None:
    """Refuse convolutions of other numbers of channels than ONNX Runtime's fast ones take on a processor.

    Around others it copies what passes: a mobilenet_v2 of 55 % of the multiply-adds took 1.64 times as long as the full
    one, and predictions were off by 26 % in the median, against 3.8 % in multiples of 8.
    """
    made = {
        item
        for layer in graph.layers
        if layer.kind in CONVOLUTIONS
        for parameter in layer.parameters
        if (dim := KINDS[layer.kind].makes.get(parameter.short)) is not None
        for item in parameter.counts[dim].widths
    }
    for name, often in sorted(made):
        if odd := [size for size in space.widths.get(name, ())[:-1] if size * often % BLOCK]:
            raise ConfigError(
                f"ONNX Runtime is fast with whole groups of {BLOCK} channels alone, and width {name} may become "
                f"{odd[0] * often}; add --space.round_to {BLOCK}, in Python SpaceConfig(round_to={BLOCK})"
            )


def _sample(graph: Graph, space: SearchSpace, count: int) -> list[Architecture]:
    """The smallest architecture, and random ones of every size between it and the full model; always the same."""
    draw, found = np.random.default_rng(0), [space.smallest]
    for share in np.linspace(0, 1, count - 1):
        found.append(space.architecture(
            min(len(sizes) - 1, int(len(sizes) * np.clip(share + draw.uniform(-0.4, 0.4), 0, 0.999)))
            for sizes in space.choices.values()
        ))  # fmt: skip
    return found[:count]


def _chosen(graph: Graph, space: SearchSpace, budgets: Sequence[Budget], count: int, seed: int) -> list[Architecture]:
    """What decoding makes of random scores under budgets of latency, in turn.

    Larger sizes have higher scores, with diminishing returns, and some widths count for more, as after a search.
    """
    draw, found = np.random.default_rng(1 + seed), []
    for place in range(count):
        gains = {
            name: draw.lognormal() * np.sort(draw.exponential(size=len(sizes)))[::-1]
            for name, sizes in space.choices.items()
        }
        scores = {name: row.cumsum().tolist() for name, row in gains.items()}
        try:
            found.append(decode(scores, graph, space, budgets[place % len(budgets)]))
        except BudgetError:
            continue  # not so fast, whatever is cut
    return list(dict.fromkeys(found))


def _fit(
    planes: Sequence[Plane],
    graph: Graph,
    architectures: Sequence[Architecture],
    measured: np.ndarray,
    targets: Sequence[float],
) -> tuple[np.ndarray, float]:
    """Weights of the features and of a constant, and the error that few exceed, without that of the full model.

    Without targets the full model is met. With some, models count by how near they are to one of them.
    """
    from scipy.optimize import nnls

    facts = np.array([
        np.append(sum(plane.at(a, graph.sizes(a)) for plane in planes), 1.0) for a in architectures
    ])  # fmt: skip
    if targets:
        away = np.abs(np.log(measured[:, None] / np.array(targets))).min(1)
        trust = FAR + np.exp(-0.5 * (away / NEAR) ** 2)
    else:
        trust = np.where(np.arange(len(measured)) == 0, 3.0, 1.0)
    weights, _ = nnls(facts * (trust / measured)[:, None], trust)  # shares count
    if not targets:
        weights = weights * measured[0] / (facts[0] @ weights)
    errors, counts = np.abs(facts @ weights / measured - 1)[1:], trust[1:] >= (0.5 if targets else 0)
    return weights, float(np.quantile(errors[counts] if counts.any() else errors, HELD)) if len(errors) else 0.0


def _part(plane: Plane, weights: np.ndarray) -> Part:
    values = np.rint(np.tensordot(weights, plane.features, 1)).astype(int)
    return Part(plane.layer, plane.gate, Lookup(plane.sides, plane.grids, tuple(map(tuple, values.tolist()))))
