"""Numbers that modules keep beside their parameters and that follow the widths."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tas.cost import Count
from tas.graph import Attribute, Graph, Layout, count_of
from tas.layout import Place, runs_of
from tas.nn.capture import Captured
from tas.nn.labels import Echo, along, condense, varying_dims
from tas.nn.paths import joined
from tas.nn.program import own_paths

OF_ONE_HEAD = re.compile("^(?!all|total).*head.*(dim|size|width|channels)|(dim|size|width).*head|^d_(head|k|v|kv)$")

_WITHOUT_RULE = ("other", "own_norm", "product")  # layers with one know their own numbers


def find_attributes(
    model: nn.Module, captured: Captured, kinds: dict[str, str], roots: np.ndarray, places: dict[int, Place]
) -> tuple[Attribute, ...]:
    """Numbers on modules that equal the size of an axis they give in numbers: they are taken to follow it.

    A guess, such as `num_heads`; the self-check has the last word. Where another axis has the same size, as with as
    many heads as channels in each, `head_dim` is not taken for their number.
    """
    found: dict[tuple[str, str, int | str | None], tuple[Attribute, torch.Tensor]] = {}
    classes = torch.as_tensor(roots)
    called = {path for node in captured.nodes for path in own_paths(node)}
    numbers_of = cache(lambda path: _whole_numbers(model.get_submodule(path)))
    for path, labels, part in _with_holders(model, captured.numbers, called):
        if kinds.get(path, "other") not in _WITHOUT_RULE:
            continue
        by_value = numbers_of(path)
        for dim in varying_dims(labels) if not by_value.keys().isdisjoint(labels.shape) else ():
            vector = along(labels, dim)
            if labels.shape[dim] not in by_value or dim not in varying_dims(classes[condense(labels)]):
                continue
            count, is_alone = count_at(roots[vector.numpy()], places), list(labels.shape).count(len(vector)) == 1
            for name, place in by_value[len(vector)] if count.widths else ():
                if not is_alone and OF_ONE_HEAD.search(name):
                    continue
                held = getattr(model.get_submodule(path), name)
                is_shape = place is not None and (len(held) == 1 or (place == dim and held == tuple(labels.shape)))
                if place in (None, part) or isinstance(place, str) or is_shape:
                    attribute = Attribute(path, name, count, place)
                    first, labels_of_first = found.setdefault((path, name, place), (attribute, vector))
                    if first != attribute:  # one number for two widths
                        captured.labels.echoes.append(Echo(path, vector, labels_of_first))
    return tuple(attribute for attribute, _ in found.values())


def find_numbers_read(
    model: nn.Module, captured: Captured, graph: Graph, roots: np.ndarray, places: dict[int, Place]
) -> tuple[Attribute, ...]:
    """Numbers on modules that equal how many channels they read: a forward may check them (`assert C == self.dim`).

    Those that a graph has already are left out, as are layers with a rule.
    """
    kinds = {layer.name: layer.kind for layer in graph.layers}
    known = {(item.module, item.name) for item in graph.attributes}
    read: dict[str, dict[bytes, np.ndarray]] = defaultdict(dict)
    for node in captured.nodes:
        for source in node.all_input_nodes:
            labels, inside = captured.values.get(source), own_paths(source)
            paths = [path for path in own_paths(node) if path not in inside]
            if not isinstance(labels, Tensor) or not paths:
                continue
            for dim in varying_dims(labels):
                vector = roots[along(labels, dim).numpy()]
                for path in paths:
                    read[path][vector.tobytes()] = vector
    found = []
    for path, vectors in read.items():
        if kinds.get(path, "other") not in _WITHOUT_RULE:
            continue
        for value, holders in _whole_numbers(model.get_submodule(path)).items():
            counts = {count_at(vector, places) for vector in vectors.values() if len(vector) == value}
            names = [name for name, place in holders if place is None and (path, name) not in known]
            if len(counts) == 1 and (count := counts.pop()).widths:
                found += [Attribute(path, name, count) for name in names]
    return tuple(found)


def _with_holders(
    model: nn.Module, numbers: list[tuple[str, Tensor, int | None]], called: set[str]
) -> Iterator[tuple[str, Tensor, int | None]]:
    """The same labels also for modules inside that are never called: a method of theirs may have given the numbers."""
    for path, labels, part in numbers:
        yield path, labels, part
        for name, child in model.get_submodule(path).named_children():
            inside = joined(path, name)
            if inside not in called and not type(child).__module__.startswith("torch.nn."):  # a layer for nothing
                yield inside, labels, part


def _whole_numbers(module: nn.Module) -> dict[int, list[tuple[str, int | str | None]]]:
    """Where a module keeps whole numbers, by number: the attribute, and the place in it."""
    found: dict[int, list[tuple[str, int | str | None]]] = {}
    for name, value in vars(module).items():
        items: Iterable[tuple[Any, Any]] = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        if isinstance(value, dict):
            items = [(key, item) for key, item in value.items() if isinstance(key, str)]
        for place, item in items:
            if type(item) is int:
                found.setdefault(item, []).append((name, place))
    return found


def layout_at(roots: np.ndarray, places: dict[int, Place]) -> Layout | None:
    """What stands on an axis with these classes; None where nothing is cut."""
    return runs_of([places.get(root) for root in roots.tolist()])


def count_at(roots: np.ndarray, places: dict[int, Place]) -> Count:
    """How many positions such an axis has."""
    layout = layout_at(roots, places)
    return Count(len(roots)) if layout is None else count_of(layout)
