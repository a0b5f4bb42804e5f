"""What modules read and give: as nodes of a captured graph, and as tensors in a run."""

from __future__ import annotations

from cmath import isclose, isnan
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from math import nan, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from tas.nn.capture import Captured
from tas.nn.outputs import tensors_of
from tas.nn.program import op_name
from tas.nn.rules.opened import first_argument
from tas.nn.surgery import shared_copy

Ends = tuple[fx.Node | None, fx.Node | None]


@dataclass(frozen=True)
class Call:
    """The last call of a module in a run.

    Attributes:
        first: a number that tells what it takes first from other tensors, and is linear in it; NaN where that is none.
        gives: the same of every tensor that it returns.
        norm: of the first of these.
        returns: items of the tuple or list that it returns; 0 where it returns a tensor alone.
    """

    first: complex
    gives: tuple[complex, ...]
    norm: float
    returns: int


UNSEEN = Call(nan, (), nan, 0)


def calls_of(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Call]:
    """How every module is called in one run on noise, by path; of a model that fails nothing is known.

    Args:
        model: in evaluation mode; not changed.
        inputs: what its forward takes, in which numbers that are not whole become noise.
    """
    calls: dict[str, Call] = {}
    firsts: dict[str, complex] = {}
    weights = cache(_noise)
    noise = [_noise(x.numel())[:, 0].view(x.shape).to(x.dtype) if x.is_floating_point() else x.clone() for x in inputs]

    def number(tensor: Any) -> complex:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return nan
        return complex(*(tensor.float().reshape(-1) @ weights(tensor.numel())).tolist())

    def look_before(path: str, module: nn.Module, arguments: Any, options: Any) -> None:
        firsts[path] = number(arguments[0] if arguments else options.get(first_argument(module)))

    def look(path: str, module: nn.Module, arguments: Any, outputs: Any) -> None:
        returns = len(outputs) if isinstance(outputs, tuple | list) else 0
        given = tensors_of(outputs)
        norm = float(given[0].float().norm()) if given else nan
        calls[path] = Call(firsts[path], tuple(map(number, given)), norm, returns)

    copy = shared_copy(model)
    with ExitStack() as hooks, torch.no_grad():
        for path, module in copy.named_modules():
            # a module may change in place what it takes
            hooks.enter_context(module.register_forward_pre_hook(partial(look_before, path), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(partial(look, path)))
        with suppress(Exception):  # the user's own forward may fail in any way
            copy(*noise)
            return calls
    return {}


def _noise(count: int) -> Tensor:
    """Two columns of numbers of mean 0 and variance 1, the same in all versions of torch and on all machines."""
    period = 65537
    angles = (3 * torch.arange(period, device="cpu") ** 2 % period).double() * (2 * pi / period)
    waves = torch.stack([angles.cos(), angles.sin()], 1).float() * 2**0.5
    return waves.repeat(-(-count // period), 1)[:count]


def find_ends(
    inside: Mapping[str, Sequence[fx.Node]], captured: Captured, calls: Mapping[str, Call]
) -> dict[str, Ends]:
    """The one node that a module reads and the one that it gives, by path; None where there is not exactly one.

    Of several that it reads (masks, what a decoder attends to), the one that has the shape and the channels of what it
    gives, if that is what it takes first. What is known to be taken at another place is None too: it is what stands
    for a dropped block.
    """
    roots = captured.labels.roots()
    entries = {path: _entries(nodes, captured) for path, nodes in inside.items()}
    exits = {path: _exit(nodes, captured) for path, nodes in inside.items()}
    known = _numbers(entries, exits, calls, captured)
    ends = {}
    for path, found in entries.items():
        exit_, first = exits[path], calls.get(path, UNSEEN).first
        if len(found) > 1:
            found = [node for node in found if is_alike(node, exit_, captured, roots)]
            found = [node for node in found if _is_among(first, known.get(node, ()))]
        elif found and not isnan(first) and not _is_among(first, known.get(found[0], (first,))):
            found = []
        ends[path] = found[0] if len(found) == 1 else None, exit_
    return ends


def _numbers(
    entries: Mapping[str, Sequence[fx.Node]],
    exits: Mapping[str, fx.Node | None],
    calls: Mapping[str, Call],
    captured: Captured,
) -> dict[fx.Node, tuple[complex, ...]]:
    """The numbers of what modules give (of all where there are several), and of its sum with what they read."""
    known: dict[fx.Node, tuple[complex, ...]] = {}
    for path, call in calls.items():
        exit_ = exits.get(path)
        if exit_ is not None:
            known[exit_] = call.gives
            for node in exit_.users:
                if is_sum(node, captured) and {*node.all_input_nodes} - {exit_} <= {*entries[path]}:
                    known.setdefault(node, tuple(call.first + number for number in call.gives))
    return known


def _is_among(number: complex, numbers: Sequence[complex]) -> bool:
    return any(isclose(number, other, rel_tol=1e-3) for other in numbers)


def is_sum(node: fx.Node, captured: Captured) -> bool:
    """Whether a node adds two tensors of one shape as they are."""
    shapes = [getattr(captured.values.get(item), "shape", None) for item in node.all_input_nodes]
    return op_name(node) == "add" and not node.kwargs.get("alpha") and len(shapes) == 2 and shapes[0] == shapes[1]


def is_alike(entry: fx.Node | None, exit_: fx.Node | None, captured: Captured, roots: np.ndarray) -> bool:
    """Whether both are tensors of the same shape and the same channels."""
    if entry is None or exit_ is None:
        return False
    before, after = captured.values[entry], captured.values[exit_]
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and before.shape == after.shape
        and np.array_equal(roots[before.numpy()], roots[after.numpy()])
    )


def _entries(nodes: Sequence[fx.Node], captured: Captured) -> list[fx.Node]:
    members = {*nodes}
    sources = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in members)
    return [source for source in sources if isinstance(captured.values.get(source), Tensor)]


def _exit(nodes: Sequence[fx.Node], captured: Captured) -> fx.Node | None:
    """The one node that others read; the end of a region under autocast is not that of a module."""
    members, graphs = {*nodes}, {node.graph for node in captured.results}
    found = [
        node
        for node in nodes
        if any(user not in members and (user.op != "output" or user.graph in graphs) for user in node.users)
    ]
    return found[0] if len(found) == 1 else None
