"""Make the small network."""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.data import as_source
from tas.data.augment import own_randomness, seed_everything
from tas.distributed import join
from tas.errors import ConfigError, DataError
from tas.graph import Graph
from tas.nn.interpolate import interpolate
from tas.nn.modes import evaluating, forget, require_unfrozen, teaching
from tas.nn.reconstruction import reconstruct
from tas.nn.statistics import batch_norms, measure_statistics
from tas.nn.supernet import reset_weights
from tas.nn.surgery import cut, require_fit

Weights = Literal["inherit", "reconstruct", "interpolate", "fresh"]
FEWEST, MOST = 16, 1024  # images to reconstruct on
VALUES = 2**24  # in them, if that is no fewer: 1,024 images of 64x64, 111 of 224x224


def derive(
    model: nn.Module,
    graph: Graph,
    architecture: Architecture,
    *,
    weights: Weights = "inherit",
    data: Any = None,
    seed: int = 0,
) -> nn.Module:
    """The network of one architecture: modules of the user's own classes, smaller; dropped blocks become identities.

    Args:
        model: the full model; not changed. Rank it first (`tas.rank`) to inherit the most important channels, or give
            `supernet.collapse(architecture)` to inherit what the search has learned.
        graph: traced from it.
        architecture: sizes to keep.
        weights: inherit the first channels of each width from `model`; reconstruct, which inherits them and then fits
            every layer to what it made in `model` on training images (He et al., 2017), without their labels;
            interpolate, so that each channel is the mean of neighbouring ones of the full model (then do not rank it
            first); or start anew (fresh) with each layer's `reset_parameters`, as the paper does.
        data: a source, or a pair of loaders, to reconstruct on: 16 to 1,024 training images, fewer of large ones, all
            of the first one's size. The network is then in evaluation mode, its batch norms with the statistics of
            these images.
        seed: of fresh weights, and of the choice of images.

    Raises:
        ConfigError: there is no such origin of weights, or no data to reconstruct on.
        ModelError: the graph does not fit the model, or all of it is frozen and should be reconstructed.
        ArchitectureError: the architecture does not belong to the graph.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights is {weights!r}; it can be {' or '.join(get_args(Weights))}")
    if weights == "reconstruct" and data is None:
        raise ConfigError("weights that are reconstructed are fitted on training images; give data, or inherit them")
    require_fit(model, graph)
    if weights == "reconstruct":
        require_unfrozen(model)
    make = interpolate if weights == "interpolate" else cut
    small = make(model, graph, graph.check(architecture))
    if weights == "fresh":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reset_weights(small)
    if weights == "reconstruct":
        home, place = join(), next(model.parameters()).device
        with own_randomness(home):
            seed_everything(seed)  # data sets of the user, and forwards, may draw from the global generators
            inputs = _images(data, str(home), seed)
            reconstruct(small.to(home), teaching(model, home), graph, architecture, inputs, seed=seed)
        small.to(place)
    forget(small)
    return small


def _images(data: Any, device: str, seed: int) -> Tensor:
    """Training images to reconstruct on.

    Raises:
        DataError: there are none.
    """
    found: list[Tensor] = []
    for inputs, _ in as_source(data).train_batches(64, seed=seed, device=device):
        if found and inputs.shape[1:] != found[0].shape[1:]:
            continue  # images of several sizes; one forward takes one
        found.append(inputs)
        wanted = max(FEWEST, min(MOST, VALUES // inputs[0].numel()))
        if sum(map(len, found)) >= wanted:
            return torch.cat(found)[:wanted]
    if not found:
        raise DataError(f"{as_source(data).name} gives no training batch; give it more samples, or smaller batches")
    return torch.cat(found)


def recalibrate(model: nn.Module, data: Any, *, batches: int = 20, batch_size: int = 256, seed: int = 0) -> nn.Module:
    """Measure the statistics of every batch norm anew on training images, in place; inherited ones no longer hold.

    A projection shortcut that was never trained still passes on what it aligns, unchanged.

    Args:
        model: changed in place and returned in evaluation mode.
        data: a source, or a pair of loaders.
        batches: how many to average over, at least 1.
        batch_size: samples in each.
        seed: of the choice of images.

    Raises:
        ConfigError: there is no batch to average over.
    """
    if batches < 1:
        raise ConfigError(f"batches is {batches}; it must be at least 1")
    if not batch_norms(model):
        return evaluating(model)
    device = str(next(model.parameters()).device)
    with own_randomness():
        seed_everything(seed)  # data sets of the user may draw from the global generators
        return measure_statistics(
            model, islice(as_source(data).train_batches(batch_size, seed=seed, device=device), batches)
        )
