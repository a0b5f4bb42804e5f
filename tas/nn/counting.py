"""Multiply-adds, counted by torch while the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from tas.graph import Graph, Layer
from tas.nn.capture import Captured


@torch.no_grad()
def count_macs(model: nn.Module, example: Tensor | Sequence[Tensor]) -> int:
    """Multiply-adds of one sample, counted by torch's flop counter.

    Args:
        model: put into evaluation mode.
        example: what `forward` takes, batch first.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    inputs = [example] if isinstance(example, Tensor) else example
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    own, fused = [p for p in model.parameters() if p.requires_grad], torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # neither it nor a fused attention kernel is counted
        for parameter in own:
            parameter.requires_grad_(False)  # the counter takes one that a module is called with for an activation
        with counter, sdpa_kernel(SDPBackend.MATH):
            model.eval()(*(tensor.to(device) for tensor in inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in own:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2 // len(inputs[0])


def uncounted_macs(model: nn.Module, captured: Captured, example: Sequence[Tensor]) -> int:
    """Multiply-adds of one sample that torch counts and no layer has: of operations without a rule, say."""
    products = [product for draft in captured.drafts.values() for product in draft.products]
    known = sum(coefficient * prod(len(labels) for labels in sizes) for coefficient, sizes in products)
    try:
        return max(0, count_macs(model, example) - known)
    except Exception:  # torch's counter may fail on what a user's forward does
        return 0


def with_uncounted(graph: Graph, macs: int) -> Graph:
    """The same graph, whose architectures all cost so many multiply-adds more."""
    if macs == 0:
        return graph
    rest = {layer.name: layer for layer in graph.layers}
    root = rest.pop("", Layer("", "other", ()))
    return replace(graph, layers=(*rest.values(), replace(root, products=(*root.products, (macs, ())))))
