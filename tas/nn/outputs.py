"""What a model returns, and how much that of another differs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # relative to the largest value of a row
DIFFERS = "differs"  # in the words for values, not for shapes or numbers of tensors
_FLOOR = 1e-6  # of the largest value of all: below are zeros that are rounded
_LONG = 8  # values of a row that are hardly ever all small by chance


@contextmanager
def no_fast_path() -> Iterator[None]:
    """torch's transformer layers read the tensors of the layers inside, past whatever stands in their places."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@torch.no_grad()
def run(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs; what a forward draws at random is the same each time."""
    with torch.random.fork_rng([tensor.device for tensor in inputs if tensor.is_cuda][:1]):
        torch.manual_seed(0)
        return tensors_of(model(*(tensor.clone() for tensor in inputs)))


def shows_something(outputs: Sequence[Tensor]) -> bool:
    """Whether outputs are finite, and not zero alone."""
    is_finite = all(bool(torch.isfinite(tensor).all()) for tensor in outputs)
    return is_finite and any(bool(tensor.any()) for tensor in outputs)


def difference(
    found: Sequence[Tensor], wanted: Sequence[Tensor], *, of: str = "the masked one", tolerance: float = TOLERANCE
) -> str | None:
    """How outputs differ from those that are wanted, of some model; None if they do not."""
    if len(found) != len(wanted):
        return f"returns {len(found)} tensors instead of {len(wanted)}"
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape:
            return f"returns shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        if one.numel() == 0:
            continue
        one, other = one.to(torch.cdouble), other.to(torch.cdouble)
        floor = max(_FLOOR * float(one.abs().max()), 1e-12)
        for rows, errors in zip(_rows(one.abs()), _rows((one - other).abs()), strict=True):
            error = float((errors.amax(1) / rows.amax(1).clamp_min(floor)).max())
            if not error <= tolerance:
                return f"{DIFFERS} from {of} by {error:.1e}"
    return None


def _rows(tensor: Tensor) -> list[Tensor]:
    """The values in one row, and in a row for every channel: of boxes and scores in one tensor, scores are small."""
    dims = {1, tensor.dim() - 1} if tensor.dim() > 2 else ()
    rows = [tensor.movedim(dim, 0).flatten(1) for dim in dims]
    return [tensor.reshape(1, -1), *(found for found in rows if found.shape[1] >= _LONG)]


def tensors_of(outputs: Any) -> list[Tensor]:
    """Every tensor in what a model returns, a nest of mappings, tuples, lists and dataclasses, in order."""
    return [tensor for _, tensor in _named(outputs, "")]


def named_tensors(outputs: Any) -> dict[str, Tensor]:
    """The same under the keys or names of fields that lead to them, joined by `_`.

    Without any it is `output`, or `output_0` and so on.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in _named(outputs, ""):
        while name in found:
            name += "_"
        found[name] = tensor
    return found


def _named(outputs: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        yield name or "output", outputs
    if is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):  # a named one
        outputs = outputs._asdict()  # type: ignore[attr-defined]
    if isinstance(outputs, list | tuple):
        name, outputs = name or "output", dict(enumerate(outputs))
    if isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from _named(value, f"{name}_{key}" if name else str(key))


def with_tensors(outputs: Any, tensors: Iterable[Tensor]) -> Any:
    """What a model returns with others in the places of its tensors, in the order of `tensors_of`."""
    left = iter(tensors)

    def filled(old: Any) -> Any:
        """The same part of the nest."""
        if isinstance(old, Tensor):
            return next(left)
        if isinstance(old, MutableMapping):  # of any class: Hugging Face's are read by attributes, too
            new = copy.copy(old)
            new.update({name: filled(value) for name, value in old.items()})
            return new
        if is_dataclass(old) and not isinstance(old, type):
            new = copy.copy(old)
            for field in fields(old):
                object.__setattr__(new, field.name, filled(getattr(old, field.name)))  # it may be frozen
            return new
        if isinstance(old, tuple) and hasattr(old, "_make"):  # a named one
            return type(old)._make(map(filled, old))  # type: ignore[attr-defined]
        return (list if isinstance(old, list) else tuple)(map(filled, old)) if isinstance(old, list | tuple) else old

    return filled(outputs)


def plain_outputs(outputs: Any) -> Any:
    """The same in Python's own containers: those of a package can be read only where it is installed."""
    if is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    if isinstance(outputs, Mapping):
        return {name: plain_outputs(value) for name, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return (list if isinstance(outputs, list) else tuple)(map(plain_outputs, outputs))
    return outputs
