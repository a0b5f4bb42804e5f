"""How important every channel is, by the criteria of the field; a width is judged in all layers it occurs in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tas.data import Batch
from tas.errors import ConfigError, DataError
from tas.graph import Graph, Layer, Parameter, channels_of
from tas.nn.modes import evaluating
from tas.nn.rules import KINDS
from tas.nn.surgery import reorder, require_fit

Importance = dict[str, np.ndarray]
WeightCriterion = Literal["l1", "l2", "fpgm", "bn_scale"]


class Maker(NamedTuple):
    """A weight on one of whose axes the channels of a width are made.

    Attributes:
        width: its name.
        layer: that makes it.
        parameter: the weight.
        dim: the axis.
        channels: of the width, at every position of the axis; -1 where another stands.
    """

    width: str
    layer: Layer
    parameter: Parameter
    dim: int
    channels: np.ndarray


def makers(graph: Graph) -> Iterator[Maker]:
    """Every place where a width is made, in order of execution."""
    for layer in graph.layers:
        for parameter in layer.parameters:
            dim = KINDS[layer.kind].makes.get(parameter.short)
            if dim is None or parameter.is_buffer:
                continue
            layout = parameter.layouts[dim] or ()
            for width in dict.fromkeys(run.width for run in layout if run.width is not None):
                yield Maker(width, layer, parameter, dim, channels_of(layout, width))


def channel_importance(model: nn.Module, graph: Graph, criterion: WeightCriterion = "l2") -> Importance:
    """Importance of every channel, from the weights alone.

    Args:
        model: the full model.
        graph: of it.
        criterion: l1 and l2 are the sum of absolute and of squared weights, biases apart, in all layers a channel
            occurs in, each axis weighted equally. fpgm is the distance to all other filters of a layer that makes the
            width, each such layer weighted equally. bn_scale is the sum of the absolute scales of the batch norms a
            channel passes; a width that passes none is judged by l2.

    Returns:
        By width name, (channels,), larger is more important; comparable within a width only.

    Raises:
        ModelError: the graph does not fit the model.

    Source:
        l1: Li et al., ICLR 2017, section 3.1, https://arxiv.org/abs/1608.08710. Over groups, and l2: Fang et al.,
        "DepGraph", CVPR 2023, section 3.3, https://arxiv.org/abs/2301.12900. fpgm: He et al., CVPR 2019, section 3.3,
        https://arxiv.org/abs/1811.00250. bn_scale: Liu et al., ICCV 2017, section 3, https://arxiv.org/abs/1708.06519.
    """
    require_fit(model, graph)
    if criterion in ("l1", "l2"):
        return _magnitudes(model, graph, 1 if criterion == "l1" else 2)
    found = _distances(model, graph) if criterion == "fpgm" else batch_norm_scales(model, graph)
    return _filled(found, model, graph)


def _magnitudes(model: nn.Module, graph: Graph, power: int) -> Importance:
    found = {name: np.zeros(size) for name, size in graph.sizes(graph.full).items()}
    tensors = _tensors(model)
    for layer in graph.layers:
        for parameter in layer.parameters:
            is_vector = sum(size > 1 for size in parameter.shape) < 2
            is_bias = is_vector and not parameter.name.endswith("weight")
            if parameter.is_buffer or is_bias or not any(parameter.layouts):
                continue
            values = tensors[parameter.name].detach().double().abs().pow(power).cpu().numpy()
            for dim, layout in enumerate(parameter.layouts):
                energy = values.sum(axis=tuple(d for d in range(values.ndim) if d != dim))
                energy = energy / max(energy.mean(), 1e-30)
                for name in {run.width for run in layout or () if run.width is not None}:
                    found[name] += _per_channel(energy, channels_of(layout or (), name), len(found[name]))
    return _of_widths(found, graph)


def _distances(model: nn.Module, graph: Graph) -> Importance:
    found, sizes, tensors = {}, graph.full.widths, _tensors(model)
    for maker in makers(graph):
        filters = _filters(tensors, maker)
        total = torch.cdist(filters, filters, compute_mode="use_mm_for_euclid_dist").sum(1).cpu().numpy()
        before = found.get(maker.width, np.zeros(sizes[maker.width]))
        found[maker.width] = before + total / max(total.mean(), 1e-30)
    return found


def filter_norms(model: nn.Module, graph: Graph) -> Importance:
    """The length of the filters that make every channel; where several layers do, of all together.

    Source:
        He et al., IJCAI 2018, equation 2 with p = 2, https://arxiv.org/abs/1808.06866.
    """
    found, tensors = {}, _tensors(model)
    for maker in makers(graph):
        squares = _filters(tensors, maker).square().sum(1).cpu().numpy()
        found[maker.width] = found.get(maker.width, 0) + squares
    return _filled({name: np.sqrt(squares) for name, squares in found.items()}, model, graph)


def batch_norm_scales(model: nn.Module, graph: Graph) -> Importance:
    """Sum of the absolute scales of the batch norms that every channel passes; only for widths that pass one."""
    found, sizes, tensors = {}, graph.sizes(graph.full), _tensors(model)
    for layer in graph.layers:
        for parameter in layer.parameters:
            if layer.kind != "batch_norm" or parameter.short != "weight":
                continue
            scales, layout = tensors[parameter.name].detach().double().abs().cpu().numpy(), parameter.layouts[0] or ()
            for name in {run.width for run in layout if run.width is not None}:
                found[name] = found.get(name, 0) + _per_channel(scales, channels_of(layout, name), sizes[name])
    return _of_widths(found, graph)


def _of_widths(found: Importance, graph: Graph) -> Importance:
    """What reads behind a stage speaks for the channels of its last block."""
    for item in graph.exits:
        last = [width for width in item.widths if width is not None][-1]
        if (behind := found.pop(item.name, None)) is not None:
            found[last] = found.get(last, 0) + behind
    return found


def taylor_importance(
    model: nn.Module, graph: Graph, batches: Iterable[Batch], loss: Callable[[Any, Any], Tensor]
) -> Importance:
    """Squared first-order change of the loss if a channel were switched off where it is made, summed over batches.

    That is the squared gradient of a gate on the channel, (Σ weight · gradient)². The gate stands behind the batch
    norm that alone reads the layer, or else behind the layer itself; a width that several layers make has one gate.

    Args:
        model: the full model; not changed, used in evaluation mode.
        graph: of it.
        batches: (inputs, targets), on the model's device.
        loss: (outputs, targets) to a scalar.

    Returns:
        By width name, (channels,), larger is more important.

    Raises:
        ModelError: the graph does not fit the model.
        DataError: there is no batch.

    Source:
        Molchanov et al., CVPR 2019, section 3, Taylor-FO with gates, https://arxiv.org/abs/1906.10771.
    """
    require_fit(model, graph)
    work = evaluating(copy.deepcopy(model)).requires_grad_(True)  # frozen weights have an importance too
    tensors, gates = _tensors(work), _gates(work, graph)
    names = list(dict.fromkeys(gate.parameter.name for gate in gates))
    if not names:
        return _filled({}, model, graph)
    sizes, count = graph.full.widths, 0
    found = {gate.width: np.zeros(sizes[gate.width]) for gate in gates}
    for inputs, targets in batches:
        value = loss(work(inputs), targets)
        slopes = torch.autograd.grad(value, [tensors[name] for name in names], allow_unused=True)
        products = {
            name: tensors[name].detach() * slope for name, slope in zip(names, slopes, strict=True) if slope is not None
        }
        change = {name: np.zeros(len(values)) for name, values in found.items()}
        for gate in gates:
            if gate.parameter.name in products:
                along = products[gate.parameter.name].double().movedim(gate.dim, 0)
                along = along.reshape(len(along), -1).sum(1).cpu().numpy()
                change[gate.width] += _per_channel(along, gate.channels, sizes[gate.width])
        for name, values in change.items():
            found[name] += values**2
        count += 1
    if count == 0:
        raise DataError("there is no training batch to measure importance on; give more samples, or smaller batches")
    return _filled(found, model, graph)


def _gates(model: nn.Module, graph: Graph) -> list[Maker]:
    """The weights that a gate on a channel would multiply: scale and shift of the norm behind, or filter and bias."""
    layers, held, gates = {layer.name: layer for layer in graph.layers}, _tensors(model), {}
    for maker in makers(graph):
        behind = layers[maker.layer.mixed_by] if maker.layer.mixed_by is not None else maker.layer
        has_scale = behind is not maker.layer and f"{behind.name}.weight" in held
        for parameter in behind.parameters if has_scale else maker.layer.parameters:
            dim = maker.dim if parameter is maker.parameter else 0
            if parameter.is_buffer or (parameter is not maker.parameter and len(parameter.shape) != 1):
                continue
            channels = channels_of(parameter.layouts[dim] or (), maker.width) if parameter.layouts[dim] else None
            if channels is not None and (channels >= 0).any():
                gate = Maker(maker.width, behind if has_scale else maker.layer, parameter, dim, channels)
                gates[maker.width, parameter.name, dim] = gate  # two layers may share one norm
    return list(gates.values())


def ranked(model: nn.Module, graph: Graph, importance: Mapping[str, np.ndarray]) -> nn.Module:
    """A copy of `model` whose channels stand in falling order of importance; it computes the same.

    Args:
        model: the full model.
        graph: of it.
        importance: by width name, (channels,).

    Raises:
        ModelError: the graph does not fit the model.
        ConfigError: the importance of a width is missing or has the wrong length.
    """
    for width in graph.widths:
        if width.name not in importance or np.shape(importance[width.name]) != (width.size,):
            raise ConfigError(f"importance of {width.name!r} must be one number for each of its {width.size} channels")
    require_fit(model, graph)
    return reorder(model, graph, _orders(graph, importance))


def _orders(graph: Graph, importance: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The old channel at every new place, by name of the width or exit; what shortcuts connect has one order."""
    orders = {width.name: np.argsort(-np.asarray(importance[width.name]), kind="stable") for width in graph.widths}
    for stream in graph.streams:
        names = [name for name in stream if name is not None]
        total = np.sum([importance[name] for name in graph.full.widths if name in stream], axis=0)
        order = np.arange(len(total)) if None in stream else np.argsort(-total, kind="stable")
        orders |= dict.fromkeys(names, order)
    return orders


def _tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _per_channel(values: np.ndarray, channels: np.ndarray, size: int) -> np.ndarray:
    """Sum of the values at all positions of every channel."""
    total = np.zeros(size)
    np.add.at(total, channels[channels >= 0], values[channels >= 0])
    return total


def _filters(tensors: Mapping[str, Tensor], maker: Maker) -> Tensor:
    """(channels, weights), float64: all that makes a channel in one layer; every channel stands equally often."""
    positions = np.flatnonzero(maker.channels >= 0)
    positions = positions[np.argsort(maker.channels[positions], kind="stable")]
    weight = tensors[maker.parameter.name].detach().double().movedim(maker.dim, 0)
    return weight[torch.as_tensor(positions, device=weight.device)].reshape(maker.channels.max() + 1, -1)


def _filled(found: Importance, model: nn.Module, graph: Graph) -> Importance:
    """Widths that a criterion says nothing about are judged by l2."""
    if all(width.name in found for width in graph.widths):
        return found
    return {**_magnitudes(model, graph, 2), **found}
