"""The paper's networks for CIFAR, and doors to other people's models; nothing here knows of pruning."""

from tas.models.catalog import load
from tas.models.cifar_resnet import CifarResNet, cifar_resnet
from tas.models.weights import load_weights

__all__ = ["CifarResNet", "cifar_resnet", "load", "load_weights"]
