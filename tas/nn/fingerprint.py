"""Whether a reloaded network computes what was saved, told by what each of its modules gives on noise."""

from __future__ import annotations

from cmath import isnan
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import nn

from tas.nn.calls import Call, calls_of
from tas.nn.modes import evaluating
from tas.nn.surgery import fresh_copy

TOLERANCE, ROUGH = 1e-3, 0.1  # of the norm of what a module gives; where weights have half precision


def fingerprint(model: nn.Module, shapes: Sequence[Sequence[int]]) -> dict[str, tuple[float, float]]:
    """Two sums over what every module gives, by path, in the order in which they end.

    Args:
        model: in any mode, on any device; not changed.
        shapes: of its inputs, batch first.

    Returns:
        Nothing where it does not run on noise (it takes tokens, say), or gives something else every time.
    """
    once, again = _calls(model, shapes), _calls(model, shapes)
    if any(call.gives[0] != again.get(path, call).gives[0] for path, call in once.items()):
        return {}
    return {path: (_rounded(call.gives[0].real), _rounded(call.gives[0].imag)) for path, call in once.items()}


def first_difference(
    model: nn.Module, shapes: Sequence[Sequence[int]], wanted: Mapping[str, Sequence[float]]
) -> str | None:
    """Path of the first module that gives something else than it should; None where none is seen.

    Args:
        model: as in `fingerprint`.
        shapes: of its inputs.
        wanted: the fingerprint that it should have.
    """
    found = _calls(model, shapes) if wanted else {}
    is_rough = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters())
    for path, sums in wanted.items():
        call = found.get(path)
        if call is not None and abs(call.gives[0] - complex(*sums)) > (ROUGH if is_rough else TOLERANCE) * call.norm:
            return path
    return None


def _calls(model: nn.Module, shapes: Sequence[Sequence[int]]) -> dict[str, Call]:
    """On the CPU, of one sample; without modules that give no tensor of numbers."""
    with suppress(Exception):  # a network that somebody has trained is saved, whatever becomes of its copy
        copy = evaluating(fresh_copy(model).cpu())
        dtype = next((weight.dtype for weight in copy.parameters() if weight.is_floating_point()), torch.float32)
        inputs = [torch.zeros(1, *shape[1:], dtype=dtype, device="cpu") for shape in shapes]
        return {path: call for path, call in calls_of(copy, inputs).items() if call.gives and not isnan(call.gives[0])}
    return {}


def _rounded(number: float) -> float:
    return float(f"{number:.7g}")
