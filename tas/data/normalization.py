"""The constants that images are normalised by; a trained network has to see those that it was trained with."""

from collections.abc import Sequence
from typing import NamedTuple

from tas.errors import DataError


class Statistics(NamedTuple):
    """Per channel, on the scale 0..1.

    Attributes:
        mean: subtracted.
        std: divided by.
    """

    mean: list[float]
    std: list[float]


NAMED = {
    # of ImageNet's training images: what every torchvision model and most others are trained with
    "imagenet": Statistics([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    # from 0..1 to -1..1: Inception networks, many Vision Transformers
    "inception": Statistics([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


def statistics_of(normalization: str | Sequence[Sequence[float]] | None) -> Statistics | None:
    """The constants that were asked for; None leaves them to the data set.

    Args:
        normalization: a name, or means and standard deviations, three numbers each, on the scale 0..1.

    Raises:
        DataError: there is no such name, or these are no six numbers, or a deviation is not positive.
    """
    if normalization is None:
        return None
    if isinstance(normalization, str):
        if normalization not in NAMED:
            raise DataError(f"normalization is {normalization!r}; it can be {_CHOICES}")
        return NAMED[normalization]
    rows = [list(row) for row in normalization]
    if [len(row) for row in rows] != [3, 3] or not all(value > 0 for value in rows[1]):
        raise DataError(f"normalization is {rows}; it can be {_CHOICES} with positive stds")
    return Statistics(*rows)


_CHOICES = f"{', '.join(NAMED)}, or three means and three stds as [[0.5,0.5,0.5],[0.5,0.5,0.5]]"
