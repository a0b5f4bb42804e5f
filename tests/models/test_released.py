from functools import cache

import pytest
import torch
import torchvision
from torch import nn

from tas.errors import ArchitectureError
from tas.graph import Graph
from tas.models import cifar_resnet, released_architecture
from tas.pipeline.derive import derive
from tas.pipeline.measure import count_macs
from tas.pipeline.trace import trace

# six results of the authors (https://github.com/D-X-Y/AutoDL-Projects): blocks, channels, and the
# multiply-adds of the network that is built
RELEASED = {
    "C010-ResNet20": (
        [3, 3, 3],
        [3, 16, 6, 4, 4, 4, 4, 4, 32, 32, 12, 19, 32, 28, 64, 64, 64, 64, 64, 44],
        22444472,
    ),
    "C010-ResNet32": (
        [5, 5, 5],
        [
            3,
            16,
            6,
            4,
            12,
            4,
            4,
            16,
            9,
            9,
            6,
            14,
            32,
            32,
            9,
            19,
            28,
            9,
            32,
            19,
            32,
            9,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            32,
            38,
            32,
        ],
        34945344,
    ),
    "C010-ResNet56": (
        [5, 5, 5],
        [
            3,
            16,
            16,
            16,
            14,
            11,
            9,
            16,
            12,
            16,
            6,
            16,
            4,
            8,
            4,
            14,
            6,
            4,
            4,
            4,
            32,
            32,
            32,
            32,
            32,
            32,
            22,
            28,
            32,
            32,
            19,
            9,
            19,
            16,
            9,
            25,
            16,
            9,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            51,
            19,
            19,
            32,
            19,
            19,
            32,
            19,
            25,
        ],
        59858430,
    ),
    "C100-ResNet20": (
        [3, 3, 3],
        [3, 16, 4, 4, 4, 4, 6, 4, 32, 32, 9, 19, 32, 28, 64, 64, 64, 64, 64, 64],
        22433792,
    ),
    "C100-ResNet32": (
        [5, 5, 5],
        [
            3,
            16,
            4,
            4,
            6,
            11,
            6,
            4,
            8,
            4,
            4,
            4,
            32,
            32,
            9,
            28,
            28,
            28,
            28,
            28,
            32,
            32,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
            64,
        ],
        42468608,
    ),
    "ImageNet-ResNet18V1": (
        [1, 1, 2, 2],
        [3, 64, 25, 64, 38, 19, 128, 128, 38, 38, 256, 256, 256, 256, 512, 512, 512, 512],
        1210757120,
    ),
}  # fmt: skip


@cache
def network(name: str) -> tuple[nn.Module, torch.Tensor, Graph]:
    if name.startswith("ImageNet"):
        model, size = torchvision.models.resnet18(), 224
    else:
        model, size = cifar_resnet(int(name.partition("ResNet")[2]), 10 if name.startswith("C010") else 100), 32
    return model, torch.zeros(1, 3, size, size), trace(model, torch.zeros(1, 3, size, size), residuals="free")


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_architecture_has_exactly_the_published_multiply_adds(name):
    xblocks, xchannels, macs = RELEASED[name]
    model, example, graph = network(name)
    architecture = released_architecture(graph, xchannels=xchannels, xblocks=xblocks)
    small = derive(model, graph, architecture)
    assert graph.macs(architecture) == macs
    assert count_macs(small, example) == macs
    assert sum(parameter.numel() for parameter in small.parameters()) == graph.params(architecture)


def test_lists_of_another_network_are_refused():
    _, _, graph = network("C010-ResNet20")
    with pytest.raises(ArchitectureError, match="xchannels are 4 and xblocks 3 numbers; this graph takes 20 and 3"):
        released_architecture(graph, xchannels=[3, 16, 16, 16], xblocks=[1, 1, 1])
    with pytest.raises(ArchitectureError, match="keeps 17; the model has 1 to 16"):
        released_architecture(graph, xchannels=[3, *[17] * 19], xblocks=[1, 1, 1])
