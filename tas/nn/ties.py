"""Forwards that only work if two widths are cut alike.

Attention may need its heads together to be as wide as what it reads, and a module may give what it has computed the
shape of what it has read (`x.reshape(batch, channels, -1)`, with `channels` from its input, as in PVT and SegFormer).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.graph import Graph
from tas.nn.capture import Captured
from tas.nn.grouping import numbers_read
from tas.nn.labels import Echo, Heads
from tas.nn.surgery import cut

MOST_TRIED = 8  # choices of what is cut with what is read: each takes a forward


def tie_heads(model: nn.Module, captured: Captured, graph: Graph, example: Sequence[Tensor]) -> bool:
    """Try one attention module of every class with fewer heads; where it fails, merge its heads with what it reads.

    Args:
        model: in evaluation mode; not changed.
        captured: its labels are merged in place.
        graph: built from them.
        example: inputs of its forward; their values do not matter.

    Returns:
        Whether anything was merged, so that the graph must be built again.
    """
    works: dict[type[nn.Module], bool] = {}
    has_tied = False
    for heads in captured.labels.heads:
        module = model.get_submodule(heads.module)
        width = _width_of(graph, captured, heads)
        if width is None or isinstance(module, nn.MultiheadAttention):  # that becomes a class that can have any number
            continue
        if type(module) not in works:
            works[type(module)] = _runs_with_fewer(model, graph, width, heads, example)
        if not works[type(module)]:
            captured.labels.union(heads.split, heads.entry, heads.module)
            has_tied = True
    if has_tied:
        captured.labels.settle()
    return has_tied


def _width_of(graph: Graph, captured: Captured, heads: Heads) -> str | None:
    """The width whose channels are these heads, if it is not that of the input too."""
    roots = captured.labels.roots()
    if set(roots[heads.split.numpy()]) & set(roots[heads.entry.numpy()]):
        return None
    return _width_with(set(roots[heads.split.numpy()].tolist()), roots, graph, captured, f"{heads.module}.")


def _width_with(wanted: set[int], roots: np.ndarray, graph: Graph, captured: Captured, within: str = "") -> str | None:
    """The width that stands alone on an axis with these channels, of a layer whose path begins like this."""
    layers = {layer.name: layer for layer in graph.layers if f"{layer.name}.".startswith(within)}
    for (parameter, dim), labels in captured.labels.axes.items():
        owner = parameter.rpartition(".")[0]
        if owner not in layers or not wanted <= set(roots[labels].tolist()):
            continue
        for item in layers[owner].parameters:
            layout = item.layouts[dim] if item.name == parameter else None
            found = {run.width for run in layout or () if run.width is not None}
            if len(found) == 1:
                return found.pop()
    return None


def tie_echoes(model: nn.Module, captured: Captured, graph: Graph, example: Sequence[Tensor]) -> bool:
    """Merge what modules read with what they give the same shape, where the model does not run otherwise.

    Takes and gives what `tie_heads` does.
    """
    roots, found = captured.labels.roots(), dict[str, dict[str, Echo]]()
    names: dict[bytes, str | None] = {}

    def name_of(labels: Tensor) -> str | None:
        vector = roots[labels.numpy()]
        if vector.tobytes() not in names:
            names[vector.tobytes()] = _width_with(set(vector.tolist()), roots, graph, captured)
        return names[vector.tobytes()]

    for echo in captured.labels.echoes:
        read, made = name_of(echo.read), name_of(echo.made)
        if read and made and read != made:
            found.setdefault(read, {}).setdefault(made, echo)
    numbers = () if not found else numbers_read(model, captured, graph)  # of heads, say, some may be wrong by chance
    choices = dict.fromkeys((graph.attributes, (*graph.attributes, *numbers), ()))
    graphs = [replace(graph, attributes=attributes) for attributes in choices]
    has_tied = False
    for read, echoes in found.items():
        for made in _echoing(model, graphs, read, list(echoes), example):
            has_tied = True
            captured.labels.union(echoes[made].read, echoes[made].made, echoes[made].module)
    if has_tied:
        captured.labels.settle()
    return has_tied


def _echoing(
    model: nn.Module, graphs: Iterable[Graph], read: str, echoes: Sequence[str], example: Sequence[Tensor]
) -> list[str]:
    """The widths, of some, without which the one that is read cannot be cut in any of these graphs, but with which."""
    for graph in graphs:
        full = graph.full.widths
        size, half = full[read], full[read] // 2  # of heads, say, where those are what is read
        if not half or _runs(model, graph, {read: half}, example):
            return []
        for made in islice(_some_kinds(echoes), MOST_TRIED):
            if _runs(model, graph, {read: half} | {name: full[name] * half // size for name in made}, example):
                return made
    return []


def _some_kinds(names: Iterable[str]) -> Iterator[list[str]]:
    """All names, then those of fewer kinds: the same layer of several blocks is one kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "", name), []).append(name)
    for count in range(len(kinds), 0, -1):
        for some in combinations(kinds.values(), count):
            yield list(chain.from_iterable(some))


def _runs(model: nn.Module, graph: Graph, widths: Mapping[str, int], example: Sequence[Tensor]) -> bool:
    """Whether the model runs with widths of these sizes."""
    architecture = Architecture({**graph.full.widths, **widths}, graph.full.depths)
    try:
        graph.check(architecture)
        with torch.no_grad():
            small = cut(model, graph, architecture)
            small(*(tensor.clone() for tensor in example))
    except Exception:  # a forward of the user's may fail in any way
        return False
    return True


def _runs_with_fewer(model: nn.Module, graph: Graph, width: str, heads: Heads, example: Sequence[Tensor]) -> bool:
    full = graph.full
    fewer = Architecture({**full.widths, width: max(1, full.widths[width] // 2)}, full.depths)
    inside = [layer for layer in graph.layers if f"{layer.name}.".startswith(f"{heads.module}.")]
    module_alone = replace(graph, layers=tuple(inside))
    arguments, options = _arguments(model, heads, example)
    try:
        with torch.no_grad():
            small = cut(model, module_alone, fewer, share_the_rest=True)
            small.get_submodule(heads.module)(*arguments, **options)
    except Exception:  # a forward of the user's may fail in any way
        return False
    return True


def _arguments(model: nn.Module, heads: Heads, example: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module is called with: one tensor, or what the whole model gives it."""
    module = model.get_submodule(heads.module)
    alone = torch.zeros(heads.shape, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        try:
            module(alone)
        except Exception:  # it takes more than one tensor
            calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
            with module.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True):
                model(*example)
            return calls[0]
    return (alone,), {}
