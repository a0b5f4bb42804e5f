"""Make the small network."""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from tas.architecture import Architecture
from tas.data import as_source
from tas.errors import ConfigError
from tas.graph import Graph
from tas.nn.supernet import reset_weights
from tas.nn.surgery import cut, require_fit


def derive(
    model: nn.Module,
    graph: Graph,
    architecture: Architecture,
    *,
    weights: Literal["inherit", "fresh"] = "inherit",
    seed: int = 0,
) -> nn.Module:
    """The network of one architecture: modules of the user's own classes, smaller; dropped blocks become identities.

    Args:
        model: the full model; not changed. Rank it first (`tas.rank`) to inherit the most important channels, or give
            `supernet.collapse(architecture)` to inherit what the search has learned.
        graph: traced from it.
        architecture: sizes to keep; each width keeps its first channels.
        weights: inherit them from `model`, or start anew with each layer's `reset_parameters`, as the paper does.
        seed: of fresh weights.

    Raises:
        ModelError: the graph does not fit the model.
        ArchitectureError: the architecture does not belong to the graph.
    """
    if weights not in ("inherit", "fresh"):
        raise ConfigError(f"weights is {weights!r}; it can be inherit or fresh")
    require_fit(model, graph)
    small = cut(model, graph, graph.check(architecture))
    if weights == "fresh":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reset_weights(small)
    return small


@torch.no_grad()
def recalibrate(model: nn.Module, data: Any, *, batches: int = 20, batch_size: int = 256, seed: int = 0) -> nn.Module:
    """Measure the statistics of every batch norm anew on training images, in place; inherited ones no longer hold.

    Args:
        model: changed in place and returned in evaluation mode.
        data: a source, or a pair of loaders.
        batches: how many to average over.
        batch_size: samples in each.
        seed: of the choice of images.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return model.eval()
    device = str(next(model.parameters()).device)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    for inputs, _ in islice(as_source(data).train_batches(batch_size, seed=seed, device=device), batches):
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
