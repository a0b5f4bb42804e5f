"""What the commands share: models by name, what a search has left, settings as YAML."""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas import models
from tas.architecture import Architecture
from tas.errors import ConfigError, RunError
from tas.graph import Graph
from tas.options import check_seed, plain
from tas.pipeline.search import SearchConfig
from tas.pipeline.train import TrainConfig
from tas.run import FULL_WEIGHTS, GRAPH, SCORES, read_text


def build_model(name: str, num_classes: int | None, weights: str | None, pretrained: bool, seed: int) -> nn.Module:
    """A model by name; weights that are not given depend on the seed."""
    check_seed(seed)
    torch.manual_seed(seed)
    with redirect_stdout(sys.stderr):  # what the user's code prints is no result
        return models.load(name, num_classes=num_classes, weights=weights, pretrained=pretrained)


InputSize = list[int] | str  # of one input without its batch, as [3,64,64], 3,64,64 or 3x64x64; 64 is a square image


def example_of(input_size: InputSize) -> Tensor:
    """One input of zeros.

    Raises:
        ConfigError: these are no positive numbers.
    """
    sizes = input_size
    if isinstance(sizes, str):
        numbers = re.split(r"[x,\s]+", sizes.strip("[]() "))
        sizes = [int(number) if number.isdecimal() else 0 for number in numbers]
        sizes = [3, *sizes, *sizes] if len(sizes) == 1 else sizes
    if min(sizes, default=0) < 1:
        raise ConfigError(
            f"input_size is {input_size}; give channels, height and width of one image, such as [3,224,224]"
        )
    return torch.zeros(1, *sizes)


def device_of(name: str) -> torch.device:
    """A device that is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        place = torch.zeros(1, device=name)
        place.item()  # which a meta tensor does not hold
        return place.device
    # a build without CUDA asserts, one without a GPU has a runtime error, and a device without kernels implements none
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split(". ")[0].partition("\n")[0]
        raise ConfigError(
            f"device {name!r} cannot be used ({reason}); give cpu, or cuda on a machine with one"
        ) from None


def found_in(folder: str) -> tuple[Graph, Architecture]:
    """Graph and architecture that a search has left in a folder."""
    path = Path(folder)
    for name in (GRAPH, "architecture.json"):
        if not (path / name).is_file():
            raise RunError(f"{path} has no {name}; give the output folder of tas search or tas compress")
    graph = Graph.from_json(read_text(path / GRAPH))
    return graph, graph.check(Architecture.from_json(read_text(path / "architecture.json")))


def trained_weights_in(run: str) -> str | None:
    """Weights of the full model that tas compress has trained: in the run, or beside those of several budgets."""
    folders = (Path(run), Path(run).parent)
    places = (folder / FULL_WEIGHTS for folder in folders if (folder / SCORES).is_file())  # whatever else lies there
    return next((str(place) for place in places if place.is_file()), None)


def classes_of(graph: Graph) -> int | None:
    """Channels of the axis that is the output of the model."""
    outputs = [item.axis.rpartition("[")[0] for item in graph.frozen if item.reason == "output of the model"]
    shapes = {parameter.name: parameter.shape for layer in graph.layers for parameter in layer.parameters}
    return shapes[outputs[0]][0] if outputs else None


def without_seed(config: SearchConfig | TrainConfig) -> dict[str, Any]:
    """A config for YAML, without its seed: one seed rules all stages."""
    return {name: value for name, value in plain(config).items() if name != "seed"}


def to_yaml(settings: dict[str, Any]) -> str:
    """Settings as the text of config.yaml."""
    import yaml

    return yaml.safe_dump(settings, sort_keys=False)
