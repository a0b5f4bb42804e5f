"""Batches split over the processes of a run: each reads its share of every batch, and no other images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tas.data.source import Batch, Batches, Source
from tas.distributed import num_processes, process_index
from tas.errors import DataError


@dataclass(frozen=True)
class Share:
    """The share of every batch that one of several processes has; equal, so that a mean of their means is the mean.

    Attributes:
        index: of the process, from 0.
        count: of processes.
    """

    index: int
    count: int

    def of(self, size: int) -> slice:
        """Where the share of a batch lies; what cannot be shared equally is left out by all."""
        own = size // self.count
        return slice(self.index * own, (self.index + 1) * own)

    def require_equal(self, batch_size: int) -> None:
        """Raise `DataError` if full batches cannot be shared equally."""
        if batch_size % self.count:
            raise DataError(
                f"batches of {batch_size} cannot be split evenly over {self.count} processes; the batch size is that "
                f"of all together: choose a multiple of {self.count}"
            )


WHOLE = Share(0, 1)


@runtime_checkable
class Shardable(Protocol):
    """Batches that need not be read as a whole to give a share of each."""

    def shard(self, share: Share) -> Batches:
        """The same batches, of each the share alone; batches too small to be shared are left out."""
        ...


@dataclass(frozen=True)
class SlicedBatches:
    """A share of batches that can only be read as a whole."""

    batches: Batches
    share: Share

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for inputs, targets in self.batches:
            place = self.share.of(len(inputs))
            if place.stop > place.start:
                yield inputs[place], targets[place]


class ShardedSource:
    """A `Source` whose training batches are one process's share of another's; its test batches are whole."""

    def __init__(self, source: Source, share: Share):
        self.source, self.share = source, share
        self.name, self.num_classes, self.input_shape = source.name, source.num_classes, source.input_shape
        self.input_dtype = getattr(source, "input_dtype", None)

    def train_batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, half: int | None = None, device: str = "cpu"
    ) -> Batches:
        """See `Source.train_batches`; the batch size is that of all processes together."""
        batches = self.source.train_batches(batch_size, seed=seed, epoch=epoch, half=half, device=device)
        return batches.shard(self.share) if isinstance(batches, Shardable) else SlicedBatches(batches, self.share)

    def test_batches(self, batch_size: int, *, device: str = "cpu") -> Batches:
        """See `Source.test_batches`."""
        return self.source.test_batches(batch_size, device=device)


def sharded(source: Source) -> Source:
    """A source of this process's share of the training batches; the source itself where there is one process."""
    count = num_processes()
    return source if count == 1 else ShardedSource(source, Share(process_index(), count))
