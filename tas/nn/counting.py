"""Multiply-adds, counted by torch while the model runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import torch
from torch import Tensor, nn

from tas.nn.capture import Captured
from tas.nn.modes import evaluating
from tas.nn.outputs import no_fast_path
from tas.nn.paths import lies_in
from tas.nn.surgery import shared_copy


def count_macs(model: nn.Module, example: Tensor | Sequence[Tensor]) -> int:
    """Multiply-adds of one sample, counted by torch's flop counter.

    Counted on shapes alone where the model runs on them: a kernel of the processor may be one operation that torch
    does not count, as that of an LSTM is.

    Args:
        model: put into evaluation mode.
        example: what `forward` takes, batch first.
    """
    return _count(model, [example] if isinstance(example, Tensor) else example)[""]


def _count(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Multiply-adds of one sample inside of every module that runs, by path; the path of the model is empty."""
    try:
        return _count_by_shapes(evaluating(model), inputs)
    except Exception:  # a forward may look at values, or make tensors on a device of its own
        return _count_by_running(model, inputs)


def _count_by_running(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)  # the counter takes one that a module is called with for an activation
        return _macs(model, [tensor.to(device) for tensor in inputs])
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def uncounted_macs(
    model: nn.Module, captured: Captured, example: Sequence[Tensor], blocks: Collection[str]
) -> dict[str, int]:
    """Multiply-adds of one sample that torch counts and no layer has: of operations without a rule, say.

    Args:
        model: in evaluation mode.
        captured: what it was captured as.
        example: what `forward` takes, batch first.
        blocks: paths of blocks that may be left out, and their multiply-adds with them.

    Returns:
        By path: inside of these blocks, without blocks within them, and under the empty path the rest.
    """
    try:
        counted = _count(model, example)
    except Exception:  # torch's counter may fail on it
        return {}
    rest, found = counted[""] - _known(captured, ""), {}
    for path in sorted(blocks, key=len, reverse=True) if rest > 0 else ():  # a block within a block first
        within = sum(macs for other, macs in found.items() if other.startswith(f"{path}."))
        found[path] = max(0, min(rest, counted.get(path, 0) - _known(captured, path) - within))
        rest -= found[path]
    return {path: macs for path, macs in (found | {"": rest}).items() if macs > 0}


def _known(captured: Captured, path: str) -> int:
    """Multiply-adds of one sample that the layers in a module have."""
    drafts = [draft for name, draft in captured.drafts.items() if lies_in(name, path)]
    products = [product for draft in drafts for product in draft.products]
    return sum(coefficient * prod(len(labels) for labels in sizes) for coefficient, sizes in products)


def _count_by_shapes(model: nn.Module, example: Sequence[Tensor]) -> dict[str, int]:
    """Without computing anything: on tensors that have shapes alone."""
    shapes = shared_copy(model).to("meta").requires_grad_(False)  # on meta the copy has parameters of its own
    return _macs(shapes, [tensor.to("meta") for tensor in example])


@torch.no_grad()
def _macs(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with no_fast_path(), counter, sdpa_kernel(SDPBackend.MATH):  # neither that nor a fused kernel would be counted
        model(*inputs)
    found = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}  # its class
    return {path: flops // 2 // len(inputs[0]) for path, flops in (found | {"": counter.get_total_flops()}).items()}
