"""What a model must be, and the modes of modules: training and evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tas.errors import ModelError, first_line

_Model = TypeVar("_Model", bound=nn.Module)


def require_module(model: Any) -> None:
    """Check that a model is one: not the class or function that builds it, nor its weights.

    Raises:
        ModelError: it is something else.
    """
    if isinstance(model, nn.Module):
        return
    what = f"a {type(model).__name__}"
    if isinstance(model, Mapping):
        raise ModelError(f"the model is {what}, no torch.nn.Module; build it, and load these into it (load_state_dict)")
    if callable(model):
        name = getattr(model, "__name__", "it")
        raise ModelError(f"the model is {name} itself, no torch.nn.Module; pass what it builds, {name}(…)")
    raise ModelError(f"the model is {what}, no torch.nn.Module; pass the model")


def require_trainable(model: nn.Module) -> None:
    """Check that there is something to train.

    Raises:
        ModelError: this is no module, every parameter is frozen, or an embedding has sparse gradients.
    """
    require_module(model)
    sparse = [path for path, module in model.named_modules() if getattr(module, "sparse", False) is True]
    if sparse:
        raise ModelError(
            f"{sparse[0] or type(model).__name__} has sparse gradients (sparse=True), which neither weight decay nor a "
            f"supernet can take; set its sparse to False, which computes the same"
        )
    require_unfrozen(model)


def require_unfrozen(model: nn.Module) -> None:
    """Raise `ModelError` where every parameter is frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"every parameter of {type(model).__name__} is frozen (requires_grad is False); call "
            f"model.requires_grad_(True) on it, or on the part that may learn"
        )


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


def forget(model: nn.Module) -> None:
    """Make modules forget what they have computed from their weights and kept, in place.

    Some do so in evaluation mode (attention biases of LeViT) and forget it when they are told to train; some of these
    cannot do without, and make it anew when they are told to evaluate.
    """
    evaluated = [module for module in model.modules() if not module.training and has_own_train(module)]
    with modes_kept(model):
        model.train()
        for module in evaluated:
            module.eval()


def has_own_train(module: nn.Module) -> bool:
    """Whether its class does more than torch's when it is told to train or to evaluate."""
    return type(module).train is not nn.Module.train
