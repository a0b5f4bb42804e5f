"""What a forward computes from parameters alone, such as a table of positions cut to size or biases joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tas.nn.rules.base import Call, Constant, positions_in
from tas.nn.rules.shape import LABELS, elementwise, move, movement, pooling

_TAKES_APART = ("chunk", "split", "split_with_sizes", "tensor_split", "slice", "narrow")


def without_labels(call: Call, value: Callable[[], Any]) -> list[Constant]:
    """What is computed from constants alone; it remembers which elements of which parameters it holds.

    Args:
        call: an operation on constants.
        value: gives what the operation computes.
    """
    sources, rule = call.constants(), LABELS.get(call.op)

    @cache
    def traced() -> list[list[tuple[str, Tensor]]]:
        """Of every result, the constants it is made of and which of their elements stand where."""
        if rule is elementwise:
            known = [entry for source in sources for entry in source.elements()]
            return [[(name, ids.expand(shape)) for name, ids in known] for shape in call.shapes]
        if rule is pooling and sources and all(shape[:2] == sources[0].shape[:2] for shape in call.shapes):
            return [[(name, _spread_out(ids, shape)) for name, ids in sources[0].elements()] for shape in call.shapes]
        if call.op == "embedding":
            rows, places = call.arguments["weight"], call.arguments["indices"].value()
            return [[(name, ids[places]) for name, ids in rows.elements()]]
        if call.op in ("cat", "stack"):
            parts = [source.elements() for source in sources]
            if len({name for part in parts for name, _ in part}) == 1 and {*map(len, parts)} == {1}:
                join = torch.cat if call.op == "cat" else torch.stack
                return [[(parts[0][0][0], join([ids for part in parts for _, ids in part], call.arguments["dim"]))]]
        elif rule is movement:
            (source,) = [item for name, item in call.arguments.items() if name == "self"]
            moved = [(name, _moved_elements(call, ids)) for name, ids in source.elements()]
            return [[(name, ids[place]) for name, ids in moved] for place in range(len(call.shapes))]
        return [[("", positions_in(shape))] for shape in call.shapes]

    def of(place: int) -> Callable[[], list[tuple[str, Tensor]]]:
        return lambda: traced()[place]

    joined = tuple(sources) if call.op == "cat" and len(call.shapes[0]) == 1 else ()
    made = [Constant(None, shape, of(place), _picked(value, place), joined) for place, shape in enumerate(call.shapes)]
    if call.op not in _TAKES_APART or not sources[0].joined:
        return made
    taken = _moved_elements(call, positions_in(sources[0].shape))
    return [_part(sources[0].joined, places) or whole for places, whole in zip(taken, made, strict=True)]


def _part(joined: Sequence[Constant], places: Tensor) -> Constant | None:
    """Which of the vectors that were joined was taken apart again, whole, as with the biases of an attention."""
    start = 0
    for part in joined:
        end = start + part.shape[0]
        if torch.equal(places, torch.arange(start, end)):
            return part
        start = end
    return None


def _spread_out(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Of a resized table, for all positions of a channel, the element that stood at its first one."""
    first = ids[(..., *[slice(0, 1)] * (len(shape) - 2))]
    return first.expand(shape)


def _moved_elements(call: Call, ids: Tensor) -> list[Tensor]:
    moved = move(replace(call, arguments={**call.arguments, "self": ids}))
    return list(moved) if isinstance(moved, list | tuple) else [moved]


def _picked(value: Callable[[], Any], place: int) -> Callable[[], Any]:
    def pick() -> Any:
        whole = value()
        return whole[place] if isinstance(whole, list | tuple) else whole

    return pick
