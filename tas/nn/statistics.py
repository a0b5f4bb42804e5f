"""The statistics of batch norms, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tas.data import Batch
from tas.distributed import average
from tas.nn.rules.shortcut import pass_unchanged, untrained_norms


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def average_statistics(model: nn.Module) -> None:
    """Give all processes the mean of what the running statistics of their norms have become, in place."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    average([value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None])


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """Give every batch norm the mean statistics of these batches, in place; those of a larger network do not hold.

    Args:
        model: changed in place and returned in evaluation mode; norms that see no batch keep what they have.
        batches: on the model's device; not looked at where there is no batch norm.
    """
    norms = batch_norms(model)
    model.eval()
    if not norms:
        return model
    held = [(norm.momentum, [value.clone() for value in norm.buffers(recurse=False)]) for norm in norms]
    projections = untrained_norms(model)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    done = False
    try:
        for inputs, _ in batches:
            model(inputs)
        done = True
    finally:
        for norm, (momentum, values) in zip(norms, held, strict=True):
            norm.momentum = momentum
            if not done or not norm.num_batches_tracked:  # something failed, or this one saw no batch
                for value, old in zip(norm.buffers(recurse=False), values, strict=True):
                    value.copy_(old)
        model.eval()
    for norm in projections:
        pass_unchanged(norm)
    return model
