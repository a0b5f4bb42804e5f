"""The user's own DataLoaders, seen as one source."""

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

from tas.data.augment import epoch_seed, own_randomness
from tas.data.batches import LoaderBatches, as_batch, reading_options
from tas.data.source import Batches, Source
from tas.data.split import stratified_split
from tas.data.tensors import check_half, check_labels
from tas.errors import DataError


def as_source(data: Any) -> Source:
    """See what a user has as a `Source`.

    Args:
        data: a `Source`, which is returned as it is, or a pair (train_loader, test_loader) of torch DataLoaders that
            yield (inputs, targets), or mappings of two, one of them called labels, label, targets or target.

    Raises:
        DataError: it is neither, or a loader has no samples.
    """
    if isinstance(data, Source) and not isinstance(data, type):
        return data
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, DataLoader) for part in data):
        return LoaderSource(data[0], data[1])
    hint = f'; for a named data set pass tas.data.load("{data}")' if isinstance(data, str) else ""
    raise DataError(
        f"data must be a Source or a pair (train_loader, test_loader) of torch DataLoaders, not {_describe(data)}{hint}"
    )


class LoaderSource:
    """A `Source` of the user's own DataLoaders.

    Batch size, collate function and workers are the loaders' own; the `batch_size` argument of the methods is only
    used where a loader has none. A loader that shuffles is rebuilt with a generator seeded by (seed, epoch), so that
    runs can resume; a loader with a sampler of its own is run as it is, its generator seeded likewise, except for
    halves. The data set's own augmentation repeats itself where it draws from the global generators of torch, Python
    or numpy, which training and search seed.

    Args:
        train_loader: yields (inputs, targets), or mappings of two; see `as_source`.
        test_loader: likewise.
        name: for records and reports.

    Raises:
        DataError: a loader has no samples, cannot count its batches, or yields something else.
    """

    def __init__(self, train_loader: DataLoader, test_loader: DataLoader, *, name: str = "loaders"):
        self.name = name
        self.train_loader = train_loader
        self.test_loader = test_loader
        for part, loader in (("training", train_loader), ("test", test_loader)):
            _check_length(part, loader)
        known = [_labels(loader.dataset) for loader in (train_loader, test_loader)]
        self.num_classes: int | None = _num_classes(train_loader.dataset, known)
        for labels in known:
            if labels is not None:
                check_labels(name, labels, self.num_classes)
        sample = _sample(train_loader)
        self.input_shape: tuple[int, ...] = tuple(sample.shape[1:])
        self.input_dtype = sample.dtype if sample.dtype in (torch.int64, torch.int32) else None  # what embeddings read
        self._halves: tuple[Tensor, Tensor] | None = None

    def train_batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, half: int | None = None, device: str = "cpu"
    ) -> Batches:
        """See `Source.train_batches`.

        Raises:
            DataError: a half of a data set that cannot be indexed, or of a single sample.
        """
        mixed = epoch_seed(seed, epoch, half)
        if half is not None:
            return LoaderBatches(self._rebuild(self._half(check_half(half)), batch_size), device, mixed)
        if _only_shuffles(self.train_loader):
            return LoaderBatches(self._rebuild(self.train_loader.dataset, batch_size), device, mixed)
        return LoaderBatches(self.train_loader, device, mixed, epoch)

    def test_batches(self, batch_size: int, *, device: str = "cpu") -> Batches:
        """See `Source.test_batches`; the order is the loader's."""
        return LoaderBatches(self.test_loader, device)

    def __repr__(self) -> str:
        classes = "no classes" if self.num_classes is None else f"{self.num_classes} classes"
        return f"LoaderSource({self.name}: inputs of {'x'.join(map(str, self.input_shape))}, {classes})"

    def _half(self, half: int) -> Dataset:
        dataset = self.train_loader.dataset
        if isinstance(dataset, IterableDataset):
            raise DataError(
                f"the search needs two halves of the training set, but {type(dataset).__name__} is an IterableDataset, "
                f"which cannot be split; pass a map-style data set, or your own Source"
            )
        if self.train_loader.batch_size is None and self.train_loader.batch_sampler is None:
            raise DataError(
                "the search needs two halves of the training set, but the training loader puts no batches together "
                "(batch_size=None), so that its samples cannot be split; give the loader a batch_size"
            )
        if self._halves is None:
            labels = _labels(dataset)
            anyhow = torch.zeros(_length(dataset))
            halves = stratified_split(anyhow if labels is None else labels)
            self._halves = halves if len(halves[1]) else stratified_split(anyhow)  # no label comes twice
        if len(self._halves[half]) == 0:
            raise DataError(f"half {half} of the training set is empty; it needs two samples per class")
        return Subset(dataset, self._halves[half].tolist())

    def _rebuild(self, dataset: Dataset, batch_size: int) -> DataLoader:
        loader = self.train_loader
        own_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or batch_size
        return DataLoader(
            dataset,
            own_size,
            shuffle=True,
            drop_last=_length(dataset) >= own_size,
            generator=torch.Generator(),
            **reading_options(loader),
        )


def _only_shuffles(loader: DataLoader) -> bool:
    sampler = loader.sampler
    if not isinstance(sampler, RandomSampler) or loader.batch_size is None:
        return False
    return not sampler.replacement and sampler.num_samples == _length(loader.dataset)


def _labels(dataset: Any) -> Tensor | None:
    """Find one class index per sample without reading the samples; None where a transform changes it."""
    if isinstance(dataset, Subset):
        labels = _labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    found = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", None)
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):  # targets of another kind, such as boxes
        return None
    is_index = labels.dim() == 1 and not labels.is_floating_point() and not labels.is_complex()
    return labels.long().cpu() if is_index and len(labels) == _length(dataset) else None


def _num_classes(dataset: Any, known: list[Tensor | None]) -> int | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", None)
    if getattr(dataset, "target_transform", None) is None and isinstance(classes, (list, tuple)) and classes:
        return len(classes)
    largest = [int(labels.max()) for labels in known if labels is not None]
    return None if known[0] is None else max(largest) + 1


def _check_length(part: str, loader: DataLoader) -> None:
    dataset: Any = loader.dataset
    if not isinstance(dataset, Sized):
        kind = type(dataset).__name__
        raise DataError(f"the number of {part} batches is unknown; give {kind} a __len__, or pass your own Source")
    if len(dataset) == 0:
        raise DataError(f"the {part} loader's data set is empty; pass one with samples")
    try:
        batches = len(loader)
    except TypeError as error:
        raise DataError(
            f"the number of {part} batches is unknown; give the loader's sampler a __len__, or pass your own Source"
        ) from error
    if batches == 0 and not (part == "training" and _only_shuffles(loader)):  # which is rebuilt
        raise DataError(
            f"the {part} loader yields no batch: {len(dataset)} samples do not fill one and drop_last is set; "
            f"give it smaller batches, or drop_last=False"
        )


def _sample(loader: DataLoader) -> Tensor:
    with own_randomness():  # looking at a sample must not change what the user's run draws
        if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
            batch = next(iter(loader), None)
        else:
            batch = loader.collate_fn([loader.dataset[0]])
    if batch is None:
        raise DataError("the training loader yields nothing; pass one with samples")
    return as_batch(batch)[0]


def _length(dataset: Any) -> int:
    return len(dataset)


def _describe(data: Any) -> str:
    if isinstance(data, (tuple, list)):
        return f"a {type(data).__name__} of {len(data)} ({', '.join(type(part).__name__ for part in data[:4])})"
    return repr(data) if isinstance(data, str) else f"a {type(data).__name__}"
