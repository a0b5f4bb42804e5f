"""Images read from disk in every epoch, augmented as ImageNet is."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tas.data.augment import epoch_seed
from tas.data.batches import LoaderBatches
from tas.data.normalization import NAMED, Statistics
from tas.data.source import Batches
from tas.data.split import stratified_split
from tas.data.tensors import check_half
from tas.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


class StreamingSource:
    """A `Source` of image files that are decoded by worker processes.

    Training: random resized crop, colour jitter 0.4/0.4/0.4/0.2, flip. Test: the shorter side to 256/224 of the size,
    then the centre.

    Args:
        train: (file, class) of every training image.
        test: (file, class) of every test image.
        name: for records and reports.
        num_classes: number of classes.
        read: turns a file into an RGB image.
        image_size: sides of the crops, in pixels.
        statistics: that images are normalised by.
        workers: worker processes; 0 reads in this one.

    Source:
        Dong and Yang, 2019, section 4.1 and their released code, https://arxiv.org/abs/1905.09717
    """

    def __init__(
        self,
        train: Sequence[tuple[str, int]],
        test: Sequence[tuple[str, int]],
        *,
        name: str,
        num_classes: int,
        read: "Callable[[str], Image.Image]",
        image_size: int = 224,
        statistics: Statistics = NAMED["imagenet"],
        workers: int = 0,
    ):
        self.name = name
        self.num_classes: int | None = num_classes
        self.input_shape: tuple[int, ...] = (3, image_size, image_size)
        self._train, self._test = train, test
        self._read, self._workers = read, workers
        self._train_transform, self._test_transform = _transforms(image_size, statistics)
        self._halves = stratified_split(torch.tensor([label for _, label in train]))

    def train_batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, half: int | None = None, device: str = "cpu"
    ) -> Batches:
        """See `Source.train_batches`; the same images whatever the number of workers."""
        samples = self._train if half is None else [self._train[i] for i in self._halves[check_half(half)].tolist()]
        if not samples:
            raise DataError(f"{self.name}: half {half} of the training set is empty; it needs two images per class")
        mixed = epoch_seed(seed, epoch, half)
        files = _Files(samples, self._read, self._train_transform, mixed)
        return self._batches(files, batch_size, device, seed=mixed, shuffle=True)

    def test_batches(self, batch_size: int, *, device: str = "cpu") -> Batches:
        """See `Source.test_batches`."""
        files = _Files(self._test, self._read, self._test_transform, 0)
        return self._batches(files, batch_size, device, seed=0, shuffle=False)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        counts = f"{len(self._train):,} training and {len(self._test):,} test images"
        return f"StreamingSource({self.name}: {counts} read as {shape}, {self.num_classes} classes)"

    def _batches(self, files: "_Files", batch_size: int, device: str, *, seed: int, shuffle: bool) -> Batches:
        loader = DataLoader(
            files,
            batch_size,
            shuffle=shuffle,
            drop_last=shuffle and len(files) >= batch_size,
            num_workers=self._workers,
            generator=torch.Generator(),
            pin_memory=str(device).startswith("cuda"),
        )
        return LoaderBatches(loader, device, seed)


class _Files(Dataset):
    def __init__(self, samples: Sequence[tuple[str, int]], read: Callable, transform: Callable, seed: int):
        self.samples, self.read, self.transform, self.seed = samples, read, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = self.read(path)
        # The transforms draw from the global generator: give it this sample's seed, then what it had.
        # `torch.manual_seed` would also reseed the GPUs, which nobody restores.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(epoch_seed(self.seed, index, None))
            return self.transform(image), label


def _transforms(size: int, statistics: Statistics) -> tuple[Callable, Callable]:
    from torchvision.transforms import v2

    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)]
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
    train = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), jitter, *tail])
    test = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size), *tail])
    return train, test
