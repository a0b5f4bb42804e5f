"""ResNets that others have trained on CIFAR-10, as a user would describe them: the models of comparisons at 32x32.

    tas compare --model benchmarks/public_resnet.py:resnet20 --weights cifar10_resnet20_optionA.safetensors …

Option A of He et al., 2016: a shortcut takes every second pixel and pads channels with zeros. The names are those of
Y. Idelbayev's weights (91.73 and 92.63 % on the test set; https://github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, by which its images come normalised
TRAINED_MEAN, TRAINED_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the weights expect


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = outputs // 4 if stride == 2 else 0

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the shape of the second convolution."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(out + shortcut)


class PublicResNet(nn.Module):
    """Three stages of equally many blocks."""

    def __init__(self, blocks: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, 10)
        mean, std, trained_mean, trained_std = (torch.tensor(x) for x in (MEAN, STD, TRAINED_MEAN, TRAINED_STD))
        self.register_buffer("scale", (std / trained_std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - trained_mean) / trained_std).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32), normalised by CIFAR-10's statistics, to (batch, 10)."""
        out = F.relu(self.bn1(self.conv1(x * self.scale + self.shift)))
        return self.linear(self.layer3(self.layer2(self.layer1(out))).mean((2, 3)))


def resnet20() -> nn.Module:
    """Fresh weights."""
    return PublicResNet(3)


def resnet32() -> nn.Module:
    """Fresh weights."""
    return PublicResNet(5)
