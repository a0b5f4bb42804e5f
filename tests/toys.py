"""Tiny data sets and nets for the tests of the verbs; everything runs in well under a second."""

import multiprocessing
import os

import torch
from torch import Tensor, nn

from tas.data import TensorSource
from tas.models.cifar_resnet import BasicBlock, CifarResNet


def tiny_source(
    samples: int = 96, classes: int = 4, size: int = 8, seed: int = 0, broken: int | None = None
) -> TensorSource:
    """Images whose class is the brightest quarter: learnable in a few steps. The one called broken is NaN."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    images = torch.rand(samples, 3, size, size, generator=generator) * 0.5
    half = size // 2
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[index, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.5
    if broken is not None:
        images[broken, 0, 0, 0] = float("nan")
    cut = samples * 2 // 3
    return TensorSource(images[:cut], labels[:cut], images[cut:], labels[cut:], name="quarters", num_classes=classes)


class TinyNet(nn.Module):
    """Two residual blocks behind a stem; widths and one depth."""

    def __init__(self, classes: int = 4, width: int = 8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*[Block(width) for _ in range(3)])
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(images))).flatten(1))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.relu(inputs + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(inputs))))))


class Deadly(TinyNet):
    """Ends a worker process that trains the full model; what is derived from it is harmless."""

    def __init__(self):
        super().__init__()
        self.whole = sum(parameter.numel() for parameter in self.parameters())

    def forward(self, images: Tensor) -> Tensor:
        is_training = self.training and torch.is_grad_enabled() and type(images) is Tensor
        is_whole = sum(parameter.numel() for parameter in self.parameters()) == self.whole
        if is_training and is_whole and multiprocessing.current_process().name == "tas-worker":
            os._exit(7)
        return super().forward(images)


class DeadlySource(TensorSource):
    """Ends a worker process that unpacks it."""

    def __setstate__(self, state: dict) -> None:
        if multiprocessing.current_process().name == "tas-worker":
            os._exit(7)
        self.__dict__.update(state)


class TwoBranches(nn.Module):
    """Branch a reads the informative channels, branch b only noise."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.a = nn.Conv2d(8, width, 1, bias=False)
        self.bn_a = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(8, width, 1, bias=False)
        self.bn_b = nn.BatchNorm2d(width)
        self.head = nn.Linear(2 * width, 8)

    def forward(self, values: Tensor) -> Tensor:
        a = torch.relu(self.bn_a(self.a(values[:, :8])))
        b = torch.relu(self.bn_b(self.b(values[:, 8:])))
        return self.head(torch.cat([a, b], 1).flatten(1))


def two_branch_source(samples: int = 1536, seed: int = 0) -> TensorSource:
    """The class is the place of the largest of the first 8 values, so branch a has to carry all of them."""
    values = torch.randn(samples, 16, 1, 1, generator=torch.Generator().manual_seed(seed))
    labels = values[:, :8].flatten(1).argmax(1)
    return TensorSource(values[:-256], labels[:-256], values[-256:], labels[-256:], name="branches", num_classes=8)


def build(num_classes: int = 4) -> nn.Module:
    """Entry point for `--model tests/toys.py:build`."""
    return TinyNet(num_classes)


def build_nan(num_classes: int = 4) -> nn.Module:
    """A model whose weights are NaN."""
    model = TinyNet(num_classes)
    nn.init.constant_(model.head.weight, float("nan"))
    return model


def build_resnet() -> nn.Module:
    """The smallest of our ResNets' kind that has depths."""
    return CifarResNet(BasicBlock, num_blocks=2, num_classes=10)
