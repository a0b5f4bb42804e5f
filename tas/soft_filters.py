"""Soft filter pruning: training in which the shortest filters are set to zero after every epoch and may come back."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from tas.architecture import Architecture
from tas.data import Source
from tas.data.augment import epoch_seed, own_randomness, seed_everything
from tas.data.batches import way_out_of_nan
from tas.errors import TrainingError
from tas.graph import Graph
from tas.nn.importance import filter_norms, makers
from tas.nn.modes import evaluating
from tas.progress import progress_bar
from tas.task import Loss, run_model, task_loss

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # He et al., 2018, section 4.1


def train_softly(
    model: nn.Module,
    graph: Graph,
    architecture: Architecture,
    source: Source,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    loss: Loss | None = None,
) -> nn.Module:
    """Train in place on the whole training set, setting filters to zero after every epoch.

    Args:
        model: the full model, on the device to train on; returned in evaluation mode, its shortest filters zero.
        graph: of it.
        architecture: how many filters of every width stay; depths play no part.
        source: of training batches.
        epochs: passes over the training set.
        batch_size: samples a step.
        learning_rate: of SGD with Nesterov momentum at the start; a cosine to 0.
        seed: of shuffling, augmentation and dropout.
        loss: (outputs, targets) to a scalar; cross-entropy by default.

    Raises:
        TrainingError: the loss became NaN or infinite.

    Source:
        He et al., "Soft Filter Pruning", IJCAI 2018, algorithm 1, https://arxiv.org/abs/1808.06866.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True,
    )  # fmt: skip
    steps = len(source.train_batches(batch_size, seed=seed, device=str(device)))
    with (
        progress_bar("sfp", epochs * steps) as bar,
        own_randomness(device),
    ):
        for epoch in range(epochs):
            seed_everything(epoch_seed(seed, epoch, None))
            model.train()
            batches = source.train_batches(batch_size, seed=seed, epoch=epoch, device=str(device))
            total = torch.zeros((), device=device)
            for step, (inputs, targets) in enumerate(batches, epoch * steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
                value = task_loss(run_model(model, inputs), targets, loss=loss, teacher_weight=0.0, temperature=1.0)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                latest = value.detach()
                total += latest
                bar.advance(f"epoch {epoch + 1}/{epochs}  loss {float(latest):.3f}" if step % 10 == 0 else "")
            if not math.isfinite(float(total)):
                way_out = way_out_of_nan(batches, "lower sfp_learning_rate")
                raise TrainingError(f"the loss of sfp became {float(total)}; {way_out}")
            zero_filters(model, graph, architecture)
    return evaluating(model)


@torch.no_grad()
def zero_filters(model: nn.Module, graph: Graph, architecture: Architecture) -> None:
    """Set the shortest filters of every width to zero, in place, in all layers that make it.

    Biases and norms stay: a channel that is zero behind a ReLU has no gradient, and its filter could not come back.
    """
    lengths, tensors = filter_norms(model, graph), dict(model.named_parameters(remove_duplicate=False))
    off = {name: np.argsort(-v, kind="stable")[architecture.widths[name] :] for name, v in lengths.items()}
    for maker in makers(graph):
        weight = tensors[maker.parameter.name]
        positions = np.flatnonzero(np.isin(maker.channels, off[maker.width]))
        weight.index_fill_(maker.dim, torch.as_tensor(positions, device=weight.device), 0)
