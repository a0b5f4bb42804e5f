"""Models of torchvision that are slow to trace, traced once."""

from dataclasses import dataclass
from functools import cache

import torch
import torchvision
from nets import perturbed
from torch import Tensor, nn

from tas.graph import Graph
from tas.pipeline.trace import trace
from tas.space import SearchSpace

NAMES = ("resnet18", "mobilenet_v2", "vgg11_bn", "densenet", "efficientnet_b0")


def _load(name: str) -> nn.Module:
    """A model of torchvision; DenseNet-121 has 120 widths of one kind, VGG's classifier a hundred million weights."""
    if name == "densenet":
        return torchvision.models.DenseNet(growth_rate=16, block_config=(3, 4, 3, 2), num_init_features=32)
    if name == "vgg11_bn":
        model = torchvision.models.vgg11_bn(init_weights=False)
        inner = nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 48), nn.ReLU(), nn.Dropout()
        model.classifier = nn.Sequential(*inner, nn.Linear(48, 1000))
        return model
    return torchvision.models.get_model(name, weights=None)


@dataclass(frozen=True)
class Traced:
    """A model with random weights, its graph, and images for it."""

    name: str
    model: nn.Module
    graph: Graph
    space: SearchSpace
    images: Tensor


@cache
def traced(name: str) -> Traced:
    model = perturbed(_load(name))
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = trace(model, inputs[:1])
    return Traced(name, model, graph, SearchSpace.of(graph), inputs)
