"""The modes of modules: training and evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from tas.errors import ModelError, first_line

_Model = TypeVar("_Model", bound=nn.Module)


def evaluating(model: _Model) -> _Model:
    """The model itself, put into evaluation mode; what its `eval` returns is not asked for.

    Users override `train` to keep norms frozen, and often return nothing from it.
    """
    model.eval()
    return model


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module back the mode that it had before the block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def teaching(teacher: _Model, device: torch.device | str) -> _Model:
    """A copy of a teacher on a device, in evaluation mode: the user's own keeps its mode, place and format.

    Raises:
        ModelError: it cannot be copied.
    """
    try:
        return evaluating(copy.deepcopy(teacher).to(device))
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"the teacher {type(teacher).__name__} cannot be copied ({first_line(error)}); remove what holds computed "
            f"tensors, or call it once under torch.no_grad()"
        ) from error
