"""What each size costs a trained model when it alone is chosen: where the logits of a short search begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.data.batches import way_out_of_nan
from tas.distributed import num_processes, process_index, summed
from tas.errors import TrainingError
from tas.nn.modes import modes_kept
from tas.nn.statistics import batch_norms
from tas.nn.supernet import Supernet
from tas.progress import Bar
from tas.space import SearchSpace

Judged = tuple[Tensor, Any, Any]  # inputs, targets, and what the teacher says of the inputs, if there is one
Objective = Callable[[nn.Module, Tensor, Any, Any], Tensor]  # (network, inputs, targets, teacher's) to a scalar
Saliency = dict[str, list[float]]
FOR_LARGER = 1e-3  # by how much the logit of the largest candidate is raised; less than saliency tells apart
HINT = "check the weights for NaN, or set search.logits_start to random"


def single_choices(space: SearchSpace) -> Iterator[tuple[str, int, Architecture]]:
    """Everything at its largest but one: name of the width or depth, index of the candidate, architecture."""
    largest = space.largest
    for kind, choices in (("widths", space.widths), ("depths", space.depths)):
        for name, sizes in choices.items():
            for index, size in enumerate(sizes[:-1]):
                yield name, index, replace(largest, **{kind: {**getattr(largest, kind), name: size}})


@torch.no_grad()
def measured_saliency(supernet: Supernet, batches: Sequence[Judged], objective: Objective, bar: Bar) -> Saliency:
    """By how much the loss grows when one width or depth alone is cut, for every candidate.

    Batch norms use the statistics of the batch, since those of the full model do not hold for a cut one: the loss is
    then closer to what training can recover. Unlike a first-order estimate it knows depths, and cuts of any size.
    Several processes share the candidates, not the batches.

    Args:
        supernet: with trained weights; afterwards as before.
        batches: the same for every candidate.
        objective: loss of a network on a batch.
        bar: told of every candidate.

    Returns:
        By width and depth name, one number per candidate, in units of the loss; 0 for the largest.

    Raises:
        TrainingError: a loss is not finite.
    """
    choices = supernet.space.choices
    found = {name: [0.0] * len(sizes) for name, sizes in choices.items()}
    with batch_statistics(supernet):

        def loss_of(architecture: Architecture) -> float:
            with supernet.fixed(architecture):
                return sum(float(objective(supernet, *batch)) for batch in batches) / len(batches)

        base = loss_of(supernet.space.largest)
        for place, (name, index, architecture) in enumerate(single_choices(supernet.space)):
            if place % num_processes() == process_index():
                found[name][index] = loss_of(architecture) - base
            bar.advance(f"{name} {choices[name][index]}: {found[name][index]:+.3f}")
    for name, losses in found.items():
        found[name] = summed(losses)
        for size, loss in zip(choices[name], found[name], strict=True):
            if not math.isfinite(loss):
                way_out = way_out_of_nan((batch[:2] for batch in batches), HINT)
                raise TrainingError(f"the loss is {base} whole and not finite with {name} at {size}; {way_out}")
    return found


@contextmanager
def batch_statistics(supernet: Supernet) -> Iterator[None]:
    """Batch norms alone in training mode; their running statistics and all modes are given back."""
    norms = {id(norm) for norm in batch_norms(supernet)}
    held = [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    try:
        with modes_kept(supernet):
            supernet.eval()
            for module in supernet.modules():
                if id(module) in norms or id(getattr(module, "_modules", {}).get("module")) in norms:  # and its wrapper
                    module.training = True
            yield
    finally:
        with torch.no_grad():
            for buffer, before in held:
                buffer.copy_(before)


def saliency_logits(saliency: Saliency, columns: int, *, entropy: float = 0.5) -> Tensor:
    """Logits that prefer what costs little: minus the saliency, scaled.

    A cut that lowers the loss does so on the images it was measured on: no candidate is preferred to a larger one, and
    of equal ones the larger is taken, so that a budget is used. But for that, their order and the architecture that
    `decode` makes of them are those of the saliency; the scale says how far a search may move them.

    Args:
        saliency: by name, one number per candidate.
        columns: of the result.
        entropy: mean over the choices of the distributions' entropy, as a share of the highest possible.

    Shape:
        (choices, columns), padding 0.
    """
    rows = [torch.tensor(row, dtype=torch.float64).flip(0).cummax(0).values.flip(0) for row in saliency.values()]
    open_rows = [row for row in rows if len(row) > 1]

    def mean_entropy(scale: float) -> float:
        shares = [(-row * scale).softmax(0) for row in open_rows]
        values = [float(torch.special.entr(share).sum()) / float(torch.tensor(len(share)).log()) for share in shares]
        return sum(values) / len(values)

    low, high = 1e-6, 1e6  # of the scale; entropy falls with it
    for _ in range(60 if open_rows else 0):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mean_entropy(middle) > entropy else (low, middle)
    logits = torch.zeros(len(rows), columns)
    for place, row in enumerate(rows):
        logits[place, : len(row)] = (-row * low + torch.linspace(0, FOR_LARGER, len(row))).float()
    return logits
