"""Fixed, stratified splits: they depend on the labels and a constant, on nothing else."""

import math

import torch
from torch import Tensor

HALVES_SEED = 1905_09717


def stratified_split(labels: Tensor, *, share: float = 0.5, seed: int = HALVES_SEED) -> tuple[Tensor, Tensor]:
    """Split the samples in two, class by class.

    The search trains the weights on one half and the architecture on the other, so the halves must never differ
    between runs, resumed runs and machines.

    Args:
        labels: (samples,), integers.
        share: of every class that goes to the first part, in [0, 1]; what cannot be shared goes there, too.
        seed: of the choice.

    Returns:
        Indices of the first and of the second part, each ascending; disjoint, together all samples.
    """
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(members), generator=generator)[: math.ceil(len(members) * share)]
        first[members[chosen]] = True
    return first.nonzero().squeeze(1), (~first).nonzero().squeeze(1)
