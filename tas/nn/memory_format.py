"""Weights laid out for speed while a network is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tas.nn.few_channels import batch_norms_in_rows


@contextmanager
def channels_last(*models: nn.Module | None, precision: str) -> Iterator[None]:
    """Keep 4-d weights channels last for the duration of the block; convolutions then give channels last, too.

    On a CPU a step of ResNet-20 takes half to three quarters of the time that way, most where channel counts are odd;
    batch norms of few channels, which torch is slow at in that format, are computed in another way there.
    On a GPU it pays with half precision alone; with float32 nothing is done. Afterwards the weights are contiguous, as
    files want them.

    Args:
        models: changed in place; None is passed over.
        precision: of the arithmetic: no is float32.
    """
    chosen = [parameter for model in models if model is not None for parameter in _images(model, precision)]
    _lay_out(chosen, torch.channels_last)
    try:
        with batch_norms_in_rows(*(model for model in models if model is not None)):
            yield
    finally:
        _lay_out(chosen, torch.contiguous_format)


def _images(model: nn.Module, precision: str) -> list[nn.Parameter]:
    """The weights that `channels_last` is for."""
    return [p for p in model.parameters() if p.dim() == 4 and (precision != "no" or p.device.type == "cpu")]


def _lay_out(parameters: list[nn.Parameter], memory_format: torch.memory_format) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.contiguous(memory_format=memory_format)
