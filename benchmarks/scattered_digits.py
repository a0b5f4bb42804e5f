"""Handwritten digits that lie about on canvases: images for detectors where nothing can be downloaded.

The 1,797 digits are real (E. Alpaydin and C. Kaynak, 1998): the first 1,400 lie on the training images, the others on
the test images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

TRAINING_DIGITS = 1400


def scattered_digits(*, images: int = 1500, tests: int = 300, size: int = 64) -> list[TensorDataset]:
    """Training and test images (3, size, size) with one to three digits each, of a fifth to 0.45 of a side, on noise.

    Targets are (objects, 5): class, or -1 for no object, centre and size in [0, 1].
    """
    from sklearn.datasets import load_digits

    digits, draw = load_digits(), torch.Generator().manual_seed(0)
    pictures = torch.tensor(digits.images, dtype=torch.float32) / 16

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    def canvases(count: int, first: int, last: int) -> TensorDataset:
        images, targets = torch.rand(count, 1, size, size, generator=draw) * 0.3, torch.full((count, 3, 5), -1.0)
        for image, objects in zip(images, targets, strict=True):
            taken: list[tuple[int, int, int]] = []
            for target in objects[: number(1, 4)]:
                side = number(14 * size // 64, 28 * size // 64 + 1)
                x, y = number(0, size - side), number(0, size - side)
                if any(x < a + s and a < x + side and y < b + s and b < y + side for a, b, s in taken):
                    continue
                taken.append((x, y, side))
                which = number(first, last)
                digit = F.interpolate(pictures[which][None, None], (side, side), mode="bilinear")[0]
                patch = image[:, y : y + side, x : x + side]
                patch.copy_(torch.maximum(patch, digit))
                place = torch.tensor([x + side / 2, y + side / 2, side, side]) / size
                target.copy_(torch.cat([torch.tensor([float(digits.target[which])]), place]))
        return TensorDataset(images.repeat(1, 3, 1, 1), targets)

    return [canvases(images, 0, TRAINING_DIGITS), canvases(tests, TRAINING_DIGITS, len(pictures))]
