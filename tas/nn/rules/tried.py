"""Operations that nobody has a rule for: tried on noise, they may turn out to keep channels apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from tas.nn.labels import along, spread, varying_dims
from tas.nn.rules.base import Call, Constant


def unknown(call: Call) -> Any:
    """Pass channels on where the operation makes of some of them what it makes of them among all; else freeze them."""
    tensors = [labels for labels in call.label_tensors() if varying_dims(labels)]
    dims = None
    for with_others in (False, True):
        with suppress(Exception):  # an operation may ask for anything, of values and of sizes
            dims = dims or _dims_passed(call, tensors, with_others)
    if dims is None:
        return call.refuse(f"passes the operation {call.op}, which has no rule")
    first, *others = (along(labels, varying_dims(labels)[0]) for labels in tensors)
    for other in others:
        call.labels.union(first, other, call.module)
    results = [spread(first, dim, shape) for dim, shape in zip(dims, call.shapes, strict=True)]
    return results[0] if len(results) == 1 else results


@torch.no_grad()
def _dims_passed(call: Call, tensors: list[Tensor], with_others: bool) -> list[int] | None:
    """On which dimension of every result the channels stand; None where one depends on another, or is multiplied.

    Args:
        call: the operation.
        tensors: the labels among its arguments that differ.
        with_others: whether other tensors, such as indices repeated for every channel, are cut as well.
    """
    from torch.utils.flop_counter import FlopCounterMode  # where there is a GPU's torch, it imports triton

    sizes = {tuple(labels.shape[dim] for dim in varying_dims(labels)) for labels in tensors}
    if len(sizes) != 1 or len(found := sizes.pop()) != 1:
        return None
    (count,), place = found, varying_dims(tensors[0])
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]

    def some(labels: Any, value: Any) -> Any:
        """An argument's value for the chosen channels alone; whole where it has none."""
        if isinstance(labels, list | tuple):
            return [some(*pair) for pair in zip(labels, value, strict=True)]
        dims = varying_dims(labels) if isinstance(labels, Tensor) else []
        if with_others and not dims and isinstance(value, Tensor) and not _is_stored(labels):
            dims = [dim for dim in place if value.dim() == tensors[0].dim() and value.shape[dim] == count]
        return value.index_select(dims[0], chosen) if dims else value

    operation, example = call.operation, call.example()
    with FlopCounterMode(display=False) as counter:
        whole = _results(operation, example)
    part = _results(operation, {name: some(call.arguments[name], value) for name, value in example.items()})
    if counter.get_total_flops() or len(whole) != len(call.shapes):
        return None
    dims = []
    for all_of_it, some_of_it in zip(whole, part, strict=True):
        dim = next(
            (dim for dim, sizes in enumerate(zip(all_of_it.shape, some_of_it.shape, strict=True)) if len({*sizes}) > 1),
            None,
        )
        if dim is None or not torch.allclose(all_of_it.index_select(dim, chosen), some_of_it, equal_nan=True):
            return None
        dims.append(dim)
    return dims


def _is_stored(argument: Any) -> bool:
    return isinstance(argument, Constant) and any(name for name, _ in argument.elements())


def _results(operation: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = operation(**arguments)
    return [result] if isinstance(result, Tensor) else list(result)
