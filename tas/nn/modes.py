"""Modules in evaluation mode."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def evaluating(model: _Model) -> _Model:
    """The model itself, put into evaluation mode; what its `eval` returns is not asked for.

    Users override `train` to keep norms frozen, and often return nothing from it.
    """
    model.eval()
    return model
