"""The paper's networks for CIFAR, doors to other people's models, and the authors' results."""

from tas.models.catalog import load, own_input_size, released_classes
from tas.models.cifar_resnet import CifarResNet, cifar_resnet
from tas.models.released import released_architecture
from tas.models.weights import load_weights

__all__ = [
    "CifarResNet", "cifar_resnet", "load", "load_weights", "own_input_size", "released_architecture",
    "released_classes",
]  # fmt: skip
