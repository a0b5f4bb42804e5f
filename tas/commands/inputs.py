"""What the commands share: models by name, what a search has left, settings as YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas import data, models
from tas.architecture import Architecture
from tas.data import Source
from tas.errors import ConfigError, ModelError, RunError
from tas.graph import Graph
from tas.options import check_seed, plain
from tas.pipeline.search import SearchConfig
from tas.pipeline.train import TrainConfig
from tas.run import ARCHITECTURE, CONFIG, FULL_WEIGHTS, GRAPH, SCORES, read_as, read_text, runs_inside

USUAL = {"model": "cifar_resnet:20", "data": "digits"}
PLACE = ("data_dir", "image_size", "normalization")  # of the data, and how its images are read


def origin_of(run: str | None, given: Mapping[str, Any], *, needs: Sequence[str] = ("model", "data")) -> dict[str, Any]:
    """Where model and data come from: what is given, and for the rest what the run says; without a run, the usual.

    Raises:
        ConfigError: the run does not say what is needed.
    """
    known = USUAL if run is None else config_of(run)
    origin = {name: known.get(name) if value is None else value for name, value in given.items()}
    if "weights" in given:  # a file replaces released ones, and they a file
        source = given if given["weights"] or given["pretrained"] else known
        origin |= {"weights": source.get("weights"), "pretrained": bool(source.get("pretrained"))}
        if run is not None and not (origin["weights"] or origin["pretrained"]):
            origin["weights"] = trained_weights_in(run)
    for name in needs:
        if not origin[name]:
            raise ConfigError(f"{run} does not say which {name} it was made with; give --{name}")
    return origin


def load_data(origin: Mapping[str, Any], download: bool = False) -> Source:
    """The data set that the options name."""
    return data.load(origin["data"], download=download, **{name: origin[name] for name in PLACE})


def build_model(
    name: str, num_classes: int | None, weights: str | None, pretrained: bool, seed: int, *, fresh_head: bool = False
) -> nn.Module:
    """A model by name; weights that are not given depend on the seed.

    Raises:
        ModelError: it was released for other classes, and `fresh_head` is not wanted.
    """
    check_seed(seed)
    torch.manual_seed(seed)
    if pretrained and not (weights or fresh_head or num_classes is None):
        released = models.released_classes(name)
        if released not in (None, num_classes):
            raise ModelError(
                f"{name} was released for {released} classes and the data has {num_classes}, so its last layer would "
                f"be untrained; first tas train {name} --pretrained --data … --output runs/teacher, then give "
                f"--weights runs/teacher/model.safetensors in the place of --pretrained"
            )
    return models.load(name, num_classes=num_classes, weights=weights, pretrained=pretrained)


InputSize = list[int] | str  # of one input without its batch, as 3,64,64, 3x64x64 or a list; 64 is a square image


def example_of(input_size: InputSize) -> Tensor:
    """One input of zeros.

    Raises:
        ConfigError: these are no positive numbers.
    """
    sizes = numbers_in(input_size)
    sizes = [3, *sizes, *sizes] if isinstance(input_size, str) and len(sizes) == 1 else sizes
    if min(sizes, default=0) < 1:
        raise ConfigError(
            f"input_size is {input_size}; give channels, height and width of one image, such as 3,224,224"
        )
    return torch.zeros(1, *sizes)


def numbers_in(text: list[int] | str) -> list[int]:
    """Whole numbers between commas or x, or those of a list; what is none counts as 0."""
    if not isinstance(text, str):
        return text
    return [int(part) if part.isdecimal() else 0 for part in re.split(r"[x,\s]+", text.strip("[]() "))]


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


def config_of(run: str | Path) -> dict[str, Any]:
    """The run's config, or nothing."""
    import yaml

    path = Path(run) / CONFIG
    if not path.is_file():
        return {}
    try:
        known = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise RunError(f"{path} is not YAML ({type(error).__name__}); repeat the run") from None
    return known if isinstance(known, dict) else {}


def found_in(folder: str) -> tuple[Graph, Architecture]:
    """Graph and architecture that a search has left in a folder."""
    path = Path(folder)
    for name in (GRAPH, ARCHITECTURE):
        if not (path / name).is_file():
            raise RunError(
                f"{path} has no {name}; give the output folder of tas search or tas compress{runs_inside(path)}"
            )
    graph = read_as(path / GRAPH, Graph.from_json)
    return graph, graph.check(read_as(path / ARCHITECTURE, Architecture.from_json))


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
