"""Batch norms that compute what `F.batch_norm` does in another way, for any module that calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class BatchNormMode(TorchFunctionMode):
    """In its block, `F.batch_norm` is `norm`, in the modules of a user and in those of a supernet alike.

    Args:
        norm: takes what `F.batch_norm` takes, and may call it.
    """

    def __init__(self, norm: Callable[..., Any]):
        super().__init__()
        self.norm = norm

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Every function of torch that is called in the block."""
        return (self.norm if func is F.batch_norm else func)(*args, **(kwargs or {}))
