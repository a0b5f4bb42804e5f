"""What the verbs know of data: a `Source` of training and test batches, and the user's own loaders seen as one."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Batches of (inputs, targets) that can be counted and run through again."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield (inputs, targets), on the CPU or already on the device asked for."""
        ...

    def __len__(self) -> int:
        """Count the batches."""
        ...


@runtime_checkable
class Source(Protocol):
    """Training and test batches of one data set.

    Attributes:
        name: for people; appears in records and reports.
        num_classes: number of labels; None when the targets are not class indices.
        input_shape: of one sample, (channels, height, width).

    A source of whole numbers that an embedding reads also has an `input_dtype` of them, torch.int64 or torch.int32.
    """

    name: str
    num_classes: int | None
    input_shape: tuple[int, ...]

    def train_batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, half: int | None = None, device: str = "cpu"
    ) -> Batches:
        """Augmented, shuffled training batches; the same for the same (seed, epoch), so that a run can resume.

        Args:
            batch_size: samples a batch; the last, incomplete batch is dropped unless it is the only one.
            seed: of the shuffling and the augmentation.
            epoch: counts from 0.
            half: None for the whole training set, 0 or 1 for a half of the fixed, stratified search split.
            device: where the batches should lie.
        """
        ...

    def test_batches(self, batch_size: int, *, device: str = "cpu") -> Batches:
        """Test batches in fixed order, not augmented, all samples once."""
        ...


def example_of(source: Source, dtype: torch.dtype) -> Tensor:
    """A batch of one sample of zeros, of the kind that a source gives.

    Args:
        source: gives numbers of its `input_dtype` where it has one.
        dtype: of all others.
    """
    return torch.zeros(1, *source.input_shape, dtype=getattr(source, "input_dtype", None) or dtype)
