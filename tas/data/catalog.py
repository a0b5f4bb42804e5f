"""The data sets that have a name: on the command line, in configs and in records."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from tas.data.normalization import statistics_of
from tas.data.source import Source
from tas.errors import DataError

NAMES = ("digits", "cifar10", "cifar100", "folder:PATH")


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | Sequence[Sequence[float]] | None = None,
    memory_limit_mb: int = 2048,
    workers: int | None = None,
) -> Source:
    """Load a data set by name.

    Args:
        name: `digits` (comes with scikit-learn), `cifar10`, `cifar100` (torchvision's files), or `folder:PATH` with
            train/ and test/ (or val/), one folder per class.
        data_dir: where CIFAR lies; None is `data`.
        download: fetch CIFAR if it is not there.
        image_size: sides of the images in pixels; None is 16 for digits, 32 for CIFAR, and the images' own size (224
            when streamed) for folders.
        normalization: what a trained network was trained with, `imagenet`, `inception` (0.5 for everything), or means
            and standard deviations of the three channels on the scale 0..1. None: CIFAR's own constants; those of the
            training images where they are in memory; ImageNet's where they are streamed.
        memory_limit_mb: a folder whose decoded images need more MiB is streamed from disk.
        workers: threads that decode a folder, or processes that stream it; None is one per usable core, at most 8.

    Raises:
        DataError: no such name, or the data set is missing, empty, unreadable or inconsistent.

    Example:
        >>> load("digits").input_shape
        (3, 16, 16)
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"images cannot have sides of {image_size} pixels; pass an image_size of 1 or more")
    statistics = statistics_of(normalization)
    if name == "digits":
        from tas.data.digits import load_digits

        return load_digits(image_size=image_size, statistics=statistics)
    if name in ("cifar10", "cifar100"):
        from tas.data.cifar import load_cifar

        return load_cifar(name, data_dir=data_dir, download=download, image_size=image_size, statistics=statistics)
    if name.startswith("folder:") and name != "folder:":
        from tas.data.folder import load_folder

        path = name.removeprefix("folder:")
        return load_folder(
            path, image_size=image_size, statistics=statistics, memory_limit_mb=memory_limit_mb, workers=workers
        )
    raise DataError(f"there is no data set {name!r}{_hint(name)}; choose one of {', '.join(NAMES)}")


def _hint(name: str) -> str:
    if Path(name).is_dir():
        return f" (did you mean folder:{name}?)"
    close = difflib.get_close_matches(name.lower().replace("-", ""), NAMES[:3], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
