"""Multiply-adds, counted by torch while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Graph, Layer
from tas.nn.capture import Captured
from tas.nn.surgery import shared_copy


def count_macs(model: nn.Module, example: Tensor | Sequence[Tensor]) -> int:
    """Multiply-adds of one sample, counted by torch's flop counter.

    Counted on shapes alone where the model runs on them: a kernel of the processor may be one operation that torch
    does not count, as that of an LSTM is.

    Args:
        model: put into evaluation mode.
        example: what `forward` takes, batch first.
    """
    inputs = [example] if isinstance(example, Tensor) else example
    try:
        return _count_by_shapes(model.eval(), inputs)
    except Exception:  # a forward may look at values, or make tensors on a device of its own
        return _count_by_running(model, inputs)


def _count_by_running(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)  # the counter takes one that a module is called with for an activation
        return _flops(model, [tensor.to(device) for tensor in inputs]) // 2 // len(inputs[0])
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def uncounted_macs(model: nn.Module, captured: Captured, example: Sequence[Tensor]) -> int:
    """Multiply-adds of one sample that torch counts and no layer has: of operations without a rule, say.

    Args:
        model: in evaluation mode.
        captured: what it was captured as.
        example: what `forward` takes, batch first.
    """
    products = [product for draft in captured.drafts.values() for product in draft.products]
    known = sum(coefficient * prod(len(labels) for labels in sizes) for coefficient, sizes in products)
    try:
        return max(0, count_macs(model, example) - known)
    except Exception:  # torch's counter may fail on it
        return 0


def _count_by_shapes(model: nn.Module, example: Sequence[Tensor]) -> int:
    """Without computing anything: on tensors that have shapes alone."""
    shapes = shared_copy(model).to("meta").requires_grad_(False)  # on meta the copy has parameters of its own
    return _flops(shapes, [tensor.to("meta") for tensor in example]) // 2 // len(example[0])


@torch.no_grad()
def _flops(run: Callable[..., Any], inputs: Sequence[Tensor]) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter, fused = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # neither it nor a fused attention kernel is counted
        with counter, sdpa_kernel(SDPBackend.MATH):
            run(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def with_uncounted(graph: Graph, macs: int) -> Graph:
    """The same graph, whose architectures all cost so many multiply-adds more."""
    if macs == 0:
        return graph
    rest = {layer.name: layer for layer in graph.layers}
    root = rest.pop("", Layer("", "other", ()))
    return replace(graph, layers=(*rest.values(), replace(root, products=(*root.products, (macs, ())))))
