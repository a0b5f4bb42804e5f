"""Models under `torch.compile`: by the user, or because a config asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn


def compiled(model: nn.Module, wanted: bool) -> nn.Module:
    """What runs the model: itself, or `torch.compile` of it, which shares its weights."""
    return cast(nn.Module, torch.compile(model)) if wanted else model


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` has wrapped the model or a module in it."""
    return any(hasattr(module, "_orig_mod") for module in model.modules())


def as_written(compiled: bool) -> AbstractContextManager[None]:
    """Where models are compiled, run them as written for a while.

    Networks of many shapes run once each while one is looked for, and compiling every one takes minutes.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # its import alone takes seconds
