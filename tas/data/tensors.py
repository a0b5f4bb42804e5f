"""A data set that fits in memory, served from tensors in whole batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tas.data.augment import CropAndFlip, epoch_seed
from tas.data.sharding import WHOLE, Share
from tas.data.source import Batch, Batches
from tas.data.split import stratified_split
from tas.errors import DataError

IGNORED = -100  # a label that counts for nothing, as in torch's cross-entropy


class TensorSource:
    """A `Source` of images held in memory.

    Training batches are shuffled, randomly cropped and mirrored, all on whole batches and on the device asked for, so
    that small images do not wait for worker processes. Nothing touches the global random state.

    Args:
        train_images: (samples, channels, height, width), uint8 in 0..255 or floating point.
        train_labels: (samples,), integers from 0.
        test_images: of the training images' shape and dtype.
        test_labels: (samples,), integers from 0.
        name: for records and reports.
        num_classes: None takes the largest training label plus one.
        padding: of the random crop, in pixels of zeros; 0 crops nothing.
        flip: mirror half of the training images left to right.
        mean: per channel, subtracted; on the scale 0..1 for uint8 images. None computes it from the training images.
        std: per channel, divided by; None likewise.

    Raises:
        DataError: no images, images and labels that do not match, or labels outside 0..num_classes-1.

    Example:
        >>> source = TensorSource(images, labels, test_images, test_labels, padding=4, flip=True)
        >>> for inputs, targets in source.train_batches(256, seed=0, epoch=0, device="cuda"):
        ...     train_step(inputs, targets)
    """

    def __init__(
        self,
        train_images: Tensor,
        train_labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        *,
        name: str = "tensors",
        num_classes: int | None = None,
        padding: int = 0,
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        self.name = name
        self.padding = padding
        self.flip = flip
        for part, images, labels in (("training", train_images, train_labels), ("test", test_images, test_labels)):
            _check_part(name, part, images, labels)
        if train_images.shape[1:] != test_images.shape[1:] or train_images.dtype != test_images.dtype:
            raise DataError(
                f"{name}: training images are {_kind(train_images)} but test images are {_kind(test_images)}; "
                f"bring them to one shape and dtype"
            )
        self.num_classes: int | None = int(train_labels.max()) + 1 if num_classes is None else num_classes
        self.input_shape: tuple[int, ...] = tuple(train_images.shape[1:])
        check_labels(name, train_labels, self.num_classes)
        check_labels(name, test_labels, self.num_classes)
        if mean is None or std is None:
            found_mean, found_std = channel_statistics(train_images)
            mean, std = mean or found_mean, std or found_std
        self.mean = _per_channel(mean, self.input_shape[0], name)
        self.std = _per_channel(std, self.input_shape[0], name)
        self._train = (train_images, train_labels.long())
        self._test = (test_images, test_labels.long())
        self._halves = stratified_split(train_labels)
        self._moved: dict[str, tuple[Batch, Batch]] = {}

    def train_batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, half: int | None = None, device: str = "cpu"
    ) -> Batches:
        """See `Source.train_batches`."""
        count = len(self._train[0])
        members = torch.arange(count) if half is None else self._halves[check_half(half)]
        if len(members) == 0:
            raise DataError(f"{self.name}: half {half} of the training set is empty; it needs two images per class")
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch, half))
        order = members[torch.randperm(len(members), generator=generator)]
        augment = CropAndFlip.draw(len(order), generator, padding=self.padding, flip=self.flip)
        full = len(order) // batch_size * batch_size
        return _TensorBatches(
            *self._on(device)[0],
            order[: full or len(order)].to(device),
            batch_size,
            self.mean,
            self.std,
            augment.to(device) if self.padding or self.flip else None,
        )

    def test_batches(self, batch_size: int, *, device: str = "cpu") -> Batches:
        """See `Source.test_batches`."""
        order = torch.arange(len(self._test[0]), device=device)
        return _TensorBatches(*self._on(device)[1], order, batch_size, self.mean, self.std, None)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        counts = f"{len(self._train[0]):,} training and {len(self._test[0]):,} test images"
        return f"TensorSource({self.name}: {counts} of {shape}, {self.num_classes} classes)"

    def _on(self, device: str) -> tuple[Batch, Batch]:
        key = str(torch.empty(0, device=device).device)  # cuda and cuda:0 are one
        if key not in self._moved:  # the images cross to the device once, not every epoch
            (images, labels), (test_images, test_labels) = self._train, self._test
            train = (images.to(device), labels.to(device))
            self._moved[key] = (train, (test_images.to(device), test_labels.to(device)))
        return self._moved[key]


@dataclass(frozen=True)
class _TensorBatches:
    images: Tensor
    labels: Tensor
    order: Tensor
    batch_size: int
    mean: Tensor
    std: Tensor
    augment: CropAndFlip | None
    share: Share = WHOLE

    def shard(self, share: Share) -> Batches:
        """See `Shardable.shard`."""
        share.require_equal(self.batch_size)
        return replace(self, share=share)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # (x - mean) / std as one product and one difference: a batch of small images costs as much as its operations
        scale = (_unit(self.images) / self.std).to(self.images.device)
        shift = (self.mean / self.std).to(self.images.device)
        for start in range(0, len(self.order), self.batch_size):
            part = self.share.of(min(self.batch_size, len(self.order) - start))
            place = slice(start + part.start, start + part.stop)
            if place.start == place.stop:
                continue
            images = self.images[self.order[place]]
            if self.augment is not None:
                images = self.augment.apply(images, place)
            yield images.float() * scale - shift, self.labels[self.order[place]]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of every channel over all pixels.

    Args:
        images: (samples, channels, height, width); uint8 is read on the scale 0..1.

    Returns:
        Means and standard deviations; a channel that never changes gets 1, so that dividing by it is harmless.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(1024):  # a float copy of the whole set would need four times its memory
        values = chunk.cpu().double() * _unit(chunk)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), torch.where(std < 1e-6, torch.ones_like(std), std).tolist()


def check_labels(name: str, labels: Tensor, num_classes: int | None) -> None:
    """Raise `DataError` if a label lies outside 0..num_classes-1, -100 ("ignore") apart; None allows everything."""
    labels = labels[labels != IGNORED]
    if num_classes is None or len(labels) == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{name}: labels run from {low} to {high}, but {num_classes} classes allow 0 to {num_classes - 1}; "
            f"number the classes from 0, or correct the number of classes; targets that are no classes go in as floats"
        )


def check_half(half: int) -> int:
    """Return `half` if it is 0 or 1, else raise `DataError`."""
    if half not in (0, 1):
        raise DataError(f"there is no half {half!r} of a training set; pass 0, 1, or None for the whole set")
    return half


def _check_part(name: str, part: str, images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4:
        raise DataError(
            f"{name}: {part} images have shape {tuple(images.shape)}, not (samples, channels, height, width)"
        )
    if len(images) == 0:
        raise DataError(f"{name}: there are no {part} images")
    if labels.dim() != 1 or labels.is_floating_point():
        raise DataError(f"{name}: {part} labels are {_kind(labels)}; pass one integer per image")
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images):,} {part} images but {len(labels):,} labels; pass one label per image")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape[1:] if tensor.dim() == 4 else tensor.shape)}"


def _per_channel(values: Sequence[float], channels: int, name: str) -> Tensor:
    if len(values) != channels:
        raise DataError(f"{name}: mean and std need {channels} values each, one per channel, got {len(values)}")
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)


def _unit(images: Tensor) -> float:
    return 1 / 255 if images.dtype == torch.uint8 else 1.0
