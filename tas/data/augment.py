"""Random crops and flips of whole batches, drawn for a whole epoch at once."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def epoch_seed(seed: int, epoch: int, half: int | None) -> int:
    """Mix the three into one seed, so that neighbouring epochs and halves draw unrelated numbers."""
    return random.Random(f"{seed} {epoch} {half}").getrandbits(63)


@contextmanager
def own_randomness(*devices: torch.device) -> Iterator[None]:
    """Give the global generators of Python, numpy and torch, on the CPU and these devices, back as before the block."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def seed_everything(seed: int) -> None:
    """Seed what dropout and the augmentation of users' data sets draw from, so that an epoch can be repeated."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@dataclass(frozen=True)
class CropAndFlip:
    """Where the crop of every sample of an epoch starts, and whether the sample is mirrored.

    Attributes:
        top: (samples,), first row of the crop in the padded image, in [0, 2 * padding].
        left: (samples,), first column, likewise.
        flip: (samples,), True where the image is mirrored left to right.
        padding: zeros put around the image.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    padding: int

    @staticmethod
    def draw(count: int, generator: torch.Generator, *, padding: int, flip: bool) -> "CropAndFlip":
        """Draw for `count` samples; on the CPU, so that every device sees the same images."""
        top = torch.randint(2 * padding + 1, (count,), generator=generator)
        left = torch.randint(2 * padding + 1, (count,), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
        return CropAndFlip(top, left, mirrored, padding)

    def to(self, device: str | torch.device) -> "CropAndFlip":
        """Move what was drawn to a device."""
        return CropAndFlip(self.top.to(device), self.left.to(device), self.flip.to(device), self.padding)

    def apply(self, images: Tensor, samples: slice) -> Tensor:
        """Crop and mirror one batch.

        Args:
            images: (batch, channels, height, width), on the device of what was drawn.
            samples: the batch's place in the epoch.

        Returns:
            (batch, channels, height, width), the images' dtype.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, (self.padding,) * 4)  # black, as the paper's crop
        rows = self.top[samples, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = torch.where(self.flip[samples, None], width - 1 - columns, columns) + self.left[samples, None]
        flat = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (batch, height, width)
        flat = flat.flatten(1)[:, None, :].expand(-1, images.shape[1], -1)
        return padded.flatten(2).gather(2, flat).view(images.shape)
