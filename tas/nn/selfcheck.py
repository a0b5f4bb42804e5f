"""Numerical proof that cutting a model computes what masking it computes; what fails is frozen."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.graph import Depth, Frozen, Graph
from tas.nn.surgery import cut, mask

TOLERANCE = 1e-4  # relative to the largest output, float32


def self_check(model: nn.Module, graph: Graph, example: Sequence[Tensor], seed: int = 0) -> Graph:
    """Cut a few architectures and compare; freeze exactly the widths and depths that fail.

    Args:
        model: in evaluation mode; not changed.
        graph: as the rules see it.
        example: inputs of `forward`; their values do not matter.
        seed: of the perturbed weights and the random architecture.

    Returns:
        The graph, with what failed frozen and the reason given.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = _perturbed(model, generator)
    inputs = [_noise(tensor, generator) for tensor in example]
    if _failure(noisy, graph, inputs, _trials(graph, seed)) is None:
        return graph
    for name in [*graph.full.widths, *graph.full.depths]:
        reason = _failure(noisy, graph, inputs, [_alone(graph, name)])
        if reason is not None:
            graph = without(graph, name, reason)
    reason = _failure(noisy, graph, inputs, _trials(graph, seed))
    if reason is not None:  # only combinations fail: nothing can be promised
        for name in [*graph.full.widths, *graph.full.depths]:
            graph = without(graph, name, f"only cuts of several groups together fail: {reason}")
    return graph


def _trials(graph: Graph, seed: int) -> list[Architecture]:
    draw = random.Random(seed)
    full = graph.full
    some = Architecture(
        {name: draw.randint(1, size) for name, size in full.widths.items()},
        {name: draw.randint(1, size) for name, size in full.depths.items()},
    )
    third = Architecture({name: max(1, size * 3 // 10) for name, size in full.widths.items()}, dict.fromkeys(full.depths, 1))
    return [third, some]


def _alone(graph: Graph, name: str) -> Architecture:
    full = graph.full
    if name in full.widths:
        return Architecture({**full.widths, name: max(1, full.widths[name] * 3 // 10)}, full.depths)
    return Architecture(full.widths, {**full.depths, name: 1})


def _perturbed(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose zeros (fresh biases, zero-initialised scales) no longer hide a wrong cut."""
    noisy = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in noisy.parameters():
            spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
            scale = 0.1 * (spread if spread > 0 else torch.ones(()))
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * scale.to(parameter))
        for module in noisy.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.add_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.mul_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return noisy


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    tensor = tensor[:2]
    return torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor


@torch.no_grad()
def _failure(model: nn.Module, graph: Graph, inputs: list[Tensor], architectures: list[Architecture]) -> str | None:
    """Why the cut model differs from the masked one; None if it does not."""
    for architecture in architectures:
        wanted = _tensors(mask(model, graph, architecture)(*inputs))
        try:
            small = cut(model, graph, architecture)
            found = _tensors(small(*inputs))
        except Exception as error:  # the user's own forward may fail in any way; it then names the reason
            first = str(error).strip().splitlines()[:1]
            return f"the cut model fails: {first[0] if first else type(error).__name__}"
        for one, other in zip(wanted, found, strict=True):
            if one.shape != other.shape:
                return f"the cut model returns shape {tuple(other.shape)} instead of {tuple(one.shape)}"
            error = float((one - other).abs().max() / one.abs().max().clamp_min(1e-12))
            if not error <= TOLERANCE:
                return f"the cut model differs from the masked one by {error:.1e}"
    return None


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for item in items for tensor in _tensors(item)] if isinstance(items, Sequence) or items else []


def without(graph: Graph, name: str, reason: str) -> Graph:
    """The graph with one width or depth frozen."""
    axes = [
        f"{parameter.name}[{dim}]"
        for layer in graph.layers
        for parameter in layer.parameters
        for dim, layout in enumerate(parameter.layouts)
        if any(run.width == name for run in layout or ())
    ]
    if any(depth.name == name for depth in graph.depths):
        depths: tuple[Depth, ...] = tuple(depth for depth in graph.depths if depth.name != name)
        layers = tuple(replace(item, gate=None if item.gate and item.gate[0] == name else item.gate) for item in graph.layers)
        frozen = (*graph.frozen, Frozen(name, reason, name))
        return replace(graph, depths=depths, layers=layers, frozen=frozen)
    layers = tuple(_without_width(layer, name, graph) for layer in graph.layers)
    widths = tuple(width for width in graph.widths if width.name != name)
    frozen = (*graph.frozen, *(Frozen(axis, reason, name) for axis in axes[:1]))
    return replace(graph, widths=widths, layers=layers, frozen=frozen)


def _without_width(layer: Any, name: str, graph: Graph) -> Any:
    size = graph.full.widths[name]

    def layout(runs: Any) -> Any:
        if not any(run.width == name for run in runs or ()):
            return runs
        left = tuple(replace(run, width=None, start=0, count=run.count * run.repeat, repeat=1) if run.width == name else run for run in runs)
        return left if any(run.width is not None for run in left) else None

    def count(value: Any) -> Any:
        times = dict(value.widths)
        constant = value.constant + size * times.pop(name, 0)
        return replace(value, constant=constant, widths=tuple(times.items()))

    parameters = tuple(replace(p, layouts=tuple(map(layout, p.layouts))) for p in layer.parameters)
    products = tuple((times, tuple(map(count, factors))) for times, factors in layer.products)
    is_changed = parameters != layer.parameters
    return replace(layer, parameters=parameters, products=products, mixed_by=None if is_changed else layer.mixed_by)
