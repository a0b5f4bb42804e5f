"""CIFAR-10 and CIFAR-100 in torchvision's format, held in memory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tas.data.normalization import Statistics
from tas.data.tensors import TensorSource
from tas.distributed import from_main
from tas.errors import DataError

# Mean and standard deviation of the 50,000 training images per channel, on the scale 0..255, as the authors' code
# rounds them (https://github.com/D-X-Y/AutoDL-Projects, get_dataset_with_transform).
STATISTICS = {
    "cifar10": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
    "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def load_cifar(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    statistics: Statistics | None = None,
) -> TensorSource:
    """Load CIFAR-10 or CIFAR-100: crops of 32 with padding 4 and flips for training.

    Args:
        name: `cifar10` or `cifar100`.
        data_dir: folder that holds torchvision's `cifar-10-batches-py` or `cifar-100-python`; None is `data`.
        download: fetch the data set into `data_dir` if it is not there.
        image_size: sides to resize to; None keeps 32.
        statistics: that images are normalised by; None is the data set's.

    Raises:
        DataError: the data set is not there, damaged, or cannot be fetched.

    Source:
        Krizhevsky, 2009, Learning multiple layers of features from tiny images.
    """
    folder = Path(data_dir or "data")
    if download:
        from_main(_fetch)(name, folder)  # several processes would disturb each other
    train, test = (_read(name, folder, train=train, download=False) for train in (True, False))
    images, test_images = (
        _resize(torch.from_numpy(part.data).permute(0, 3, 1, 2), image_size) for part in (train, test)
    )
    mean, std = statistics or ([value / 255 for value in values] for values in STATISTICS[name])
    return TensorSource(
        images,
        torch.tensor(train.targets),
        test_images,
        torch.tensor(test.targets),
        name=name,
        num_classes=len(train.classes),
        padding=images.shape[2] // 8,
        flip=True,
        mean=mean,
        std=std,
    )


def _fetch(name: str, folder: Path) -> None:
    for train in (True, False):
        _read(name, folder, train=train, download=True)


def _read(name: str, folder: Path, *, train: bool, download: bool) -> Any:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        return dataset(str(folder), train=train, download=download)
    except (RuntimeError, OSError) as error:  # OSError: no network, no right to write
        if download:
            raise DataError(
                f"{name} cannot be fetched into {folder} ({error}); get it by hand and pass --data-dir"
            ) from None
        raise DataError(
            f"{name} is not in {folder / FOLDERS[name]}, or damaged; pass its parent folder with --data-dir, "
            f"or fetch it with --download"
        ) from None


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None:
        return images.contiguous()
    from torchvision.transforms.v2 import functional

    return functional.resize(images, [size, size], antialias=True)
