"""The batches of a DataLoader: counted, moved to a device, the same every time."""

import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from tas.data.sharding import Share, SlicedBatches
from tas.data.source import Batch, Batches
from tas.errors import DataError

TARGETS = {"labels", "label", "targets", "target"}  # in batches that are mappings


@dataclass(frozen=True)
class LoaderBatches:
    """The batches of a DataLoader on a device, the same every time they are run through.

    Attributes:
        loader: yields (inputs, targets).
        device: where the batches should lie.
        seed: of the generators the loader and its sampler own; None leaves them as they are.
        epoch: told to a sampler that asks for it, as `DistributedSampler` does (`set_epoch`).
    """

    loader: DataLoader
    device: str
    seed: int | None = None
    epoch: int = 0

    def shard(self, share: Share) -> Batches:
        """See `Shardable.shard`; where samples have numbers, those of others are not read."""
        loader = self.loader
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            return SlicedBatches(self, share)
        if loader.batch_size is not None:
            share.require_equal(loader.batch_size)
        sampler = _SharedSampler(loader.batch_sampler, share)
        own = DataLoader(loader.dataset, batch_sampler=sampler, generator=loader.generator, **reading_options(loader))
        return replace(self, loader=own)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is not None:
            batches = self.loader.batch_sampler
            for owner in (self.loader, self.loader.sampler, batches, getattr(batches, "sampler", None)):
                if callable(set_epoch := getattr(owner, "set_epoch", None)):
                    set_epoch(self.epoch)
                if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                    generator.manual_seed(self.seed)
        try:
            for batch in self.loader:
                inputs, targets = as_batch(batch)
                yield inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
        except DataError as error:
            # torch's frames keep the error and its workers alive in a cycle, and collecting that takes 5 s.
            traceback.clear_frames(error.__traceback__)
            # Worker processes put their whole traceback into the message.
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from None


class _SharedSampler(Sampler[list[int]]):
    """One process's share of every batch of a sampler."""

    def __init__(self, batches: Any, share: Share):
        self.batches, self.share = batches, share
        self.sampler = getattr(batches, "sampler", None)  # whose generator is seeded

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if part := batch[self.share.of(len(batch))]:
                yield part


def reading_options(loader: DataLoader) -> dict[str, Any]:
    """How a loader reads and puts together, for another one that chooses other samples."""
    return {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "worker_init_fn": loader.worker_init_fn,
        "timeout": loader.timeout,
        "multiprocessing_context": loader.multiprocessing_context,
    }


def as_batch(batch: Any) -> Batch:
    """Return what a loader yields as (inputs, targets), or raise `DataError`.

    A mapping of two, as loaders for Hugging Face's models yield (`pixel_values`, `labels`), tells them by name.
    """
    given = batch
    if isinstance(batch, Mapping) and len(batch) == 2 and len(targets := TARGETS & batch.keys()) == 1:
        batch = [batch[name] for name in sorted(batch, key=targets.__contains__)]
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise DataError(
        f"a loader must yield (inputs, targets), two tensors, but it yields {described(given)}; "
        f"change its collate_fn, or pass your own Source"
    )


def way_out_of_nan(batches: Iterable[Batch], otherwise: str) -> str:
    """What to do where a loss is not finite, for its message: mend the data where it is to blame.

    Args:
        batches: that were learned from; they are read up to the first one to blame.
        otherwise: the way out where all of them are finite.
    """
    for number, batch in enumerate(batches):
        for kind, values in zip(("image", "target"), batch, strict=True):
            if not isinstance(values, Tensor):
                continue
            finite = torch.isfinite(values).reshape(len(values), -1).all(1).tolist()
            if False in finite:
                return (
                    f"{kind} {finite.index(False)} of batch {number} has NaN or infinite values: mend the data or its "
                    f"transforms"
                )
    return otherwise


def described(value: Any) -> str:
    """What a loader or a model gives, in words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value[:5]) or 'nothing'}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, islice(value, 5))) or 'nothing'}"
    return f"a {type(value).__name__}"
