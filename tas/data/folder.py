"""Image folders: PATH/train and PATH/test (or PATH/val), one folder per class."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tas.data.normalization import NAMED, Statistics
from tas.data.source import Source
from tas.data.streaming import StreamingSource
from tas.data.tensors import TensorSource
from tas.distributed import usable_cores
from tas.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image
    from torchvision.datasets import ImageFolder

Samples = list[tuple[str, int]]  # file and class
TEST_FOLDERS = ("test", "val")
CHUNK = 256  # files a thread decodes in one go; smaller chunks cost more to hand out than to decode


def load_folder(
    path: str | Path,
    *,
    image_size: int | None = None,
    statistics: Statistics | None = None,
    memory_limit_mb: int = 2048,
    workers: int | None = None,
) -> Source:
    """Load a folder of images, into memory when it fits.

    Images of one common size whose pixels fit in `memory_limit_mb` are read once and augmented as CIFAR is (crop with
    padding of an eighth of the size, flip). Everything else is read from disk in every epoch and augmented as
    ImageNet is.

    Args:
        path: holds train/ and test/ (or val/), each with the same class folders.
        image_size: sides to resize to in memory; the crop's sides when streaming (None is 224).
        statistics: that images are normalised by; None is those of the training images in memory, ImageNet's when
            streaming.
        memory_limit_mb: for the decoded images, in MiB; 0 always streams.
        workers: threads that decode, or processes that stream; None is one per usable core, at most 8.

    Raises:
        DataError: a folder is missing or empty, the class folders differ, or an image cannot be read.
    """
    root, name = Path(path), f"folder:{path}"
    workers = min(8, usable_cores()) if workers is None else workers
    train, test = _list_part(root, ("train",)), _list_part(root, TEST_FOLDERS)
    _check_classes(root, train.classes, test.classes)
    held = _held_images(train.samples, test.samples, image_size, memory_limit_mb, workers)
    if held is not None:
        images, test_images = held
        mean, std = statistics or (None, None)
        return TensorSource(
            images, torch.tensor(train.targets), test_images, torch.tensor(test.targets), name=name,
            num_classes=len(train.classes), padding=min(images.shape[2:]) // 8, flip=True, mean=mean, std=std,
        )  # fmt: skip
    return StreamingSource(
        train.samples,
        test.samples,
        name=name,
        num_classes=len(train.classes),
        read=read_image,
        image_size=image_size or 224,
        statistics=statistics or NAMED["imagenet"],
        workers=workers,
    )


def read_image(path: str) -> "Image.Image":
    """Read an image file as RGB.

    Raises:
        DataError: the file is no image, damaged, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to white or black
                raise DataError(
                    f"{path} has pixels of more than 8 bits (Pillow's mode {image.mode}); convert the images to 8 "
                    f"bits, or pass DataLoaders of your own"
                )
            # Pillow warns when a palette with transparency goes to RGB directly.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            return opaque.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path} ({first_line(error)}); replace or remove it") from None


def _list_part(root: Path, names: Sequence[str]) -> "ImageFolder":
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    if not root.is_dir():
        raise DataError(f"there is no folder {root}; pass one that holds train/ and test/ (or val/)")
    found = [root / name for name in names if (root / name).is_dir()]
    wanted = " or ".join(f"{name}/" for name in names)
    if not found:
        raise DataError(f"{root} has no {wanted}; put one folder per class into {root / names[0]}")
    folder = found[0]
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
        raise DataError(f"{folder} has no class folders; put the images of every class into a folder of their own")
    skipped: list[str] = []

    class Visible(ImageFolder):
        """Without what systems and editors hide beside the images, such as ._1.jpg or .ipynb_checkpoints."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
            return names, {name: label for label, name in enumerate(names)}

    def is_image(path: str) -> bool:
        """By the file's name, as torchvision decides; what it leaves out is noted, but for hidden files."""
        if f"{os.sep}." in path[len(str(folder)) :]:
            return False
        if has_file_allowed_extension(path, IMG_EXTENSIONS):
            return True
        skipped.append(path)
        return False

    part = Visible(str(folder), is_valid_file=is_image, allow_empty=True)
    if skipped:
        warnings.warn(
            f"{len(skipped)} files of {folder} are left out, {skipped[0]} among them: only {', '.join(IMG_EXTENSIONS)} "
            f"are read",
            stacklevel=3,
        )
    filled = {label for _, label in part.samples}
    empty = [name for label, name in enumerate(part.classes) if label not in filled]
    if empty:
        raise DataError(f"{folder / empty[0]} holds no images; add some, or remove the folder from every part")
    return part


def _check_classes(root: Path, train: list[str], test: list[str]) -> None:
    if train == test:
        return
    differences = [f"only train has {', '.join(sorted(set(train) - set(test))[:5])}"] * bool(set(train) - set(test))
    differences += [f"only test has {', '.join(sorted(set(test) - set(train))[:5])}"] * bool(set(test) - set(train))
    raise DataError(
        f"{root}: training and test classes differ ({'; '.join(differences)}); give both parts the same class folders"
    )


def _held_images(
    train: Samples, test: Samples, image_size: int | None, memory_limit_mb: int, workers: int
) -> tuple[Tensor, Tensor] | None:
    """All images of both parts, uint8; None where they are too many, or not of one size."""
    width, height = size = read_image(train[0][0]).size
    pixels = image_size**2 if image_size else width * height
    if (len(train) + len(test)) * 3 * pixels > memory_limit_mb * 2**20:
        return None
    images = _decode(train, size, image_size, workers)
    test_images = None if images is None else _decode(test, size, image_size, workers)
    return None if images is None or test_images is None else (images, test_images)


def _decode(samples: Samples, size: tuple[int, int], image_size: int | None, workers: int) -> Tensor | None:
    """Read all images into one uint8 tensor; None as soon as one is not of the common size."""
    width, height = (image_size, image_size) if image_size else size
    pixels = np.empty((len(samples), 3, height, width), dtype=np.uint8)

    def decode_chunk(start: int) -> bool:
        """Fill one stretch of the array; False where an image has another size."""
        for index in range(start, min(start + CHUNK, len(samples))):
            image = read_image(samples[index][0])
            if image.size != size:
                return False
            if image_size:
                image = image.resize((width, height))
            pixels[index] = np.asarray(image).transpose(2, 0, 1)
        return True

    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            complete = all(pool.map(decode_chunk, range(0, len(samples), CHUNK)))
        finally:
            pool.shutdown(cancel_futures=True)  # after a misfit or an error the rest need not be read
    return torch.from_numpy(pixels) if complete else None
