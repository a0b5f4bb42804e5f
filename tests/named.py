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

NAMES = ("resnet18", "mobilenet_v2", "vgg11_bn", "densenet121", "efficientnet_b0")


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
    options = {"init_weights": False} if name == "vgg11_bn" else {}
    model = perturbed(torchvision.models.get_model(name, weights=None, **options))
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = trace(model, inputs[:1])
    return Traced(name, model, graph, SearchSpace.of(graph), inputs)
