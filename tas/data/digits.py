"""Handwritten digits that come with scikit-learn: real images, no download, seconds to train on."""

import torch
import torch.nn.functional as F

from tas.data.normalization import Statistics
from tas.data.split import stratified_split
from tas.data.tensors import TensorSource
from tas.errors import DataError

SPLIT_SEED = 1797  # the number of images; any constant would do, but it must never change
TRAIN_SHARE = 0.8
DEFAULT_SIZE = 16  # three stages halve it twice: the images' own 8 would leave 2x2 pixels


def load_digits(*, image_size: int | None = None, statistics: Statistics | None = None) -> TensorSource:
    """Load the 1,797 digits, 80 % of every class for training.

    Crops move a digit by up to one pixel; there are no flips, since a mirrored digit is another sign.

    Args:
        image_size: sides after bilinear resizing of the 8x8 originals; None is 16.
        statistics: that images are normalised by; None is those of the training images.

    Raises:
        DataError: scikit-learn is not installed.

    Source:
        Alpaydin and Kaynak, 1998, Optical Recognition of Handwritten Digits (test part), UCI repository.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError("the digits come with scikit-learn, which is missing; pip install tas-pruning[demo]") from None
    pixels, digits = datasets.load_digits(return_X_y=True)
    images = torch.as_tensor(pixels).float().view(-1, 1, 8, 8) * (255 / 16)  # stored as 0..16
    size = image_size or DEFAULT_SIZE
    images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    images = images.round().clamp(0, 255).byte().repeat(1, 3, 1, 1)
    labels = torch.as_tensor(digits).long()
    train, test = stratified_split(labels, share=TRAIN_SHARE, seed=SPLIT_SEED)
    mean, std = statistics or (None, None)
    return TensorSource(
        images[train], labels[train], images[test], labels[test], name="digits", num_classes=10, padding=1,
        mean=mean, std=std,
    )  # fmt: skip
