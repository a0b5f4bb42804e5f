"""One function per command; their parameters are the options, their docstrings the help."""

from __future__ import annotations

import json as json_module
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import DefaultHelpFormatter
from torch import nn

from tas import data as data_sets
from tas import models
from tas.architecture import Architecture
from tas.budget import Budget
from tas.errors import ConfigError, RunError
from tas.graph import Graph
from tas.nn.supernet import Supernet
from tas.pipeline.compress import CompressConfig, short_search, short_teacher, short_train
from tas.pipeline.compress import compress as compress_model
from tas.pipeline.derive import derive as derive_model
from tas.pipeline.derive import recalibrate
from tas.pipeline.measure import measure as measure_model
from tas.pipeline.rank import rank
from tas.pipeline.report import report as write_report
from tas.pipeline.search import SearchConfig
from tas.pipeline.search import search as search_model
from tas.pipeline.store import load, save
from tas.pipeline.trace import trace as trace_model
from tas.pipeline.train import TrainConfig
from tas.pipeline.train import train as train_model
from tas.record import versions
from tas.run import GRAPH, SUMMARY, RunFolder, read_summary
from tas.show import print_graph, print_profiles
from tas.space import SearchSpace
from tas.storage import write_text, write_with

# --seed rules all stages: these follow it and are no options of their own
SEEDS = {
    "compress": ["search.seed", "train.seed", "teacher.seed"],
    "search": ["search.seed"],
    "train": ["train.seed"],
}


class HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def compress(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    budget: Budget = Budget(),  # noqa: B008  a frozen value
    search: SearchConfig = short_search(),  # noqa: B008
    train: TrainConfig = short_train(),  # noqa: B008
    teacher: TrainConfig = short_teacher(),  # noqa: B008
    choose: Literal["both", "width", "depth"] = "both",
    execution: Literal["compact", "dense"] = "compact",
    init: Literal["inherit", "fresh"] = "inherit",
    latency_batch: int = 1,
    seed: int = 0,
    output: str | None = None,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Shrink a model to a budget: search, derive, distil, measure, report.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION
        weights: trained weights of the full model (safetensors or a state dict); without them it is trained first
        pretrained: use the released weights of torchvision or timm
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        budget: upper bounds of the small model, 50% of the macs by default
        search: how the architecture is searched
        train: how the small model is trained, with the full one as its teacher
        teacher: how the full model is trained when it comes without weights
        choose: search widths, depths, or both
        execution: of the supernet; both compute the same, compact is faster on a CPU
        init: the small model inherits weights, or starts fresh as in the paper
        latency_batch: images in the timed forward pass
        seed: of everything random
        output: folder of the results, runs/DATE-TIME by default
        resume: go on with the interrupted run in the output folder
        json: print the summary as JSON
    """
    if resume and output is None:
        raise ConfigError("resume needs the folder of the run; add --output FOLDER")
    output = output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
    source = data_sets.load(data, data_dir=data_dir, download=download, image_size=image_size)
    full = _model(model, source.num_classes, weights, pretrained, seed)
    origin = {
        "model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir,
        "image_size": image_size,
    }  # fmt: skip
    config = CompressConfig(
        search=search, train=train, teacher=teacher, choose=choose, execution=execution, init=init,
        latency_batch=latency_batch, seed=seed,
    )  # fmt: skip
    result = compress_model(
        full, source, budget=budget, config=config, output=output, resume=resume,
        train_teacher=weights is None and not pretrained, origin=origin,
    )  # fmt: skip
    if json:
        print(json_module.dumps(result.summary))
    else:
        print_profiles({"full": result.full.to_dict(), "pruned": result.pruned.to_dict()})
        print(f"model, architecture and report: {output}/report.md")


def trace(
    *,
    model: str = "cifar_resnet:20",
    num_classes: int | None = None,
    input_size: list[int] | None = None,
    output: str | None = None,
    json: bool = False,
) -> None:
    """Show what can be pruned in a model, and what cannot and why.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION
        num_classes: outputs of the classifier, where the constructor takes it
        input_size: channels, height, width of one image; [3,32,32] for cifar_resnet, else [3,224,224]
        output: file for the graph as JSON
        json: print the graph as JSON
    """
    size = input_size or ([3, 32, 32] if model.startswith("cifar_resnet") else [3, 224, 224])
    graph = trace_model(_model(model, num_classes, None, False, 0), torch.zeros(1, *size))
    if output is not None:
        write_text(Path(output), graph.to_json())
    if json:
        print(graph.to_json())
    else:
        print_graph(graph, SearchSpace.of(graph).smallest)


def search(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    budget: Budget = Budget(),  # noqa: B008
    search: SearchConfig = short_search(),  # noqa: B008
    choose: Literal["both", "width", "depth"] = "both",
    execution: Literal["compact", "dense"] = "compact",
    seed: int = 0,
    output: str = "runs/search",
    resume: bool = False,
    json: bool = False,
) -> None:
    """Search the architecture under a budget; writes graph.json, architecture.json and record.jsonl.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION
        weights: trained weights of the full model; not needed with --search.start scratch
        pretrained: use the released weights of torchvision or timm
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        budget: upper bounds of the small model, 50% of the macs by default
        search: how the architecture is searched
        choose: search widths, depths, or both
        execution: of the supernet; both compute the same, compact is faster on a CPU
        seed: of everything random
        output: folder of the results
        resume: go on with the interrupted search in the output folder
        json: print the architecture and its cost as JSON
    """
    if search.start == "trained" and weights is None and not pretrained:
        raise ConfigError(
            "a search from a trained start needs --weights or --pretrained; or add --search.start scratch"
        )
    source = data_sets.load(data, data_dir=data_dir, download=download, image_size=image_size)
    full = _model(model, source.num_classes, weights, pretrained, seed)
    graph = trace_model(full, torch.zeros(1, *source.input_shape))
    space = SearchSpace.of(graph, choose=choose)
    budget.require_reachable(graph, space.smallest)
    settings = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
    settings |= {"image_size": image_size, "budget": asdict(budget), "search": _plain(search), "choose": choose}
    settings |= {"execution": execution, "seed": seed}
    run = RunFolder.open(output, _yaml(settings), resume=resume, result="architecture.json")
    run.write_json(GRAPH, graph.to_dict())
    supernet = Supernet(rank(full, graph) if search.start == "trained" else full, graph, space, execution=execution)
    found = search_model(
        supernet, source, budget=budget, config=search, teacher=full if search.teacher_weight else None,
        record=run.record(), checkpoint=run.checkpoint("search"),
    ).architecture  # fmt: skip
    write_text(Path(output) / "architecture.json", found.to_json())
    run.drop_checkpoints()
    cost = {
        name: {"full": graph.cost(name).exact(graph.full), "pruned": graph.cost(name).exact(found)}
        for name in ("macs", "params")
    }
    if json:
        print(json_module.dumps({"architecture": json_module.loads(found.to_json()), **cost}))
    else:
        print_graph(graph, space.smallest, found)
        print(f"architecture: {output}/architecture.json; make the network with tas derive --run {output}")


def derive(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    run: str = "runs/search",
    init: Literal["inherit", "fresh"] = "inherit",
    data: str | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Make the small network of an architecture; writes model.safetensors into the run's folder.

    Args:
        model: the model that was searched
        weights: its trained weights, to inherit from
        pretrained: use the released weights of torchvision or timm
        run: folder with graph.json and architecture.json, from tas search
        init: inherit the most important channels, or start fresh
        data: data set to recalibrate the norms on; without it they keep their old statistics until trained
        data_dir: where cifar10 and cifar100 lie
        image_size: resize images to this many pixels a side
        seed: of fresh weights
        json: print the costs as JSON
    """
    if init == "inherit" and weights is None and not pretrained:
        raise ConfigError("there is nothing to inherit; give --weights or --pretrained, or --init fresh")
    graph, architecture = _found(run)
    full = _model(model, _classes(graph), weights, pretrained, seed)
    ranked = rank(full, graph) if init == "inherit" else full
    small = derive_model(ranked, graph, architecture, weights=init, seed=seed)
    if data is not None:
        small = recalibrate(small, data_sets.load(data, data_dir=data_dir, image_size=image_size), seed=seed)
    save(run, small, graph, architecture)
    cost = {"macs": graph.macs(architecture), "params": graph.params(architecture)}
    print(
        json_module.dumps(cost)
        if json
        else f"{run}/model.safetensors: {cost['macs']:,} macs, {cost['params']:,} params"
    )


def train(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    run: str | None = None,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    train: TrainConfig = short_teacher(),  # noqa: B008
    seed: int = 0,
    output: str = "runs/train",
    resume: bool = False,
    json: bool = False,
) -> None:
    """Train a full model, or with --run a derived one that learns from the full model with --weights.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION
        weights: where a full model starts; with --run, the trained teacher
        pretrained: use the released weights of torchvision or timm
        run: folder of a derived model; its model.safetensors is replaced by the trained one
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        train: how it is trained
        seed: of everything random
        output: folder for the weights of a full model; not used with --run
        resume: go on with the interrupted training in the output folder; with --run that happens by itself
        json: print the accuracy as JSON
    """
    config = train
    source = data_sets.load(data, data_dir=data_dir, download=download, image_size=image_size)
    full = _model(model, source.num_classes, weights, pretrained, seed)
    if run is not None:
        graph, architecture = _found(run)
        folder = RunFolder(Path(run))
        teacher = full if weights or pretrained else None
        small = train_model(
            load(run, full),
            source,
            teacher=teacher,
            config=config,
            record=folder.record(),
            checkpoint=folder.checkpoint("train"),
        )
        save(run, small, graph, architecture)
        folder.drop_checkpoints()
        place, trained = Path(run) / "model.safetensors", small
    else:
        settings = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
        settings |= {"image_size": image_size, "train": _plain(config), "seed": seed}
        folder = RunFolder.open(output, _yaml(settings), resume=resume, result="model.safetensors")
        place = Path(output) / "model.safetensors"
        trained = train_model(
            full, source, config=config, record=folder.record(), checkpoint=folder.checkpoint("train")
        )
        _save_full(trained, place)
        folder.drop_checkpoints()
    profile = measure_model(trained, source)
    print(json_module.dumps(profile.to_dict()) if json else f"{place}: test accuracy {profile.accuracy:.2f} %")


def measure(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    run: str | None = None,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    latency_batch: int = 1,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Measure accuracy, multiply-adds, parameters and latency; with --run of the full and the small model.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION
        weights: trained weights of the full model
        pretrained: use the released weights of torchvision or timm
        run: folder of a small model; its summary.json is written, for tas report
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        latency_batch: images in the timed forward pass
        seed: of weights that are not given
        json: print the profiles as JSON
    """
    if latency_batch < 1:
        raise ConfigError(f"latency_batch is {latency_batch}; it must be at least 1")
    source = data_sets.load(data, data_dir=data_dir, download=download, image_size=image_size)
    full = _model(model, source.num_classes, weights, pretrained, seed)
    profiles = {"full": measure_model(full, source, latency_batch=latency_batch).to_dict()}
    if run is not None:
        profiles["pruned"] = measure_model(load(run, full), source, latency_batch=latency_batch).to_dict()
        _write_summary(Path(run), profiles)
    if json:
        print(json_module.dumps(profiles))
    else:
        print_profiles(profiles)


def report(*, run: str, json: bool = False) -> None:
    """Write the report of a run and print its result.

    Args:
        run: folder of a finished run
        json: print the summary as JSON
    """
    path = write_report(run)
    summary = read_summary(run)
    if json:
        print(json_module.dumps(summary))
    else:
        print_profiles({name: summary[name] for name in ("full", "pruned")})
        print(f"report: {path}")


def _model(name: str, num_classes: int | None, weights: str | None, pretrained: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.load(name, num_classes=num_classes, weights=weights, pretrained=pretrained)


def _found(folder: str) -> tuple[Graph, Architecture]:
    path = Path(folder)
    for name in (GRAPH, "architecture.json"):
        if not (path / name).is_file():
            raise RunError(f"{path} has no {name}; give the output folder of tas search or tas compress")
    graph = Graph.from_json((path / GRAPH).read_text(encoding="utf-8"))
    return graph, graph.check(Architecture.from_json((path / "architecture.json").read_text(encoding="utf-8")))


def _classes(graph: Graph) -> int | None:
    """Outputs of the last layer with multiply-adds, which is the classifier."""
    last = [layer for layer in graph.layers if layer.kind == "linear"]
    return last[-1].parameters[0].shape[0] if last else None


def _save_full(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_model

    write_with(path, lambda temporary: save_model(model, str(temporary)))


def _write_summary(run: Path, profiles: dict[str, Any]) -> None:
    import yaml

    folder = RunFolder(run)
    known = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if (run / "config.yaml").is_file() else {}
    record = folder.record()
    seconds = {stage: round(record.seconds(stage), 1) for stage in ("teacher", "search", "train")}
    budget = Budget(**known.get("budget", {}))
    summary = {**profiles, "budget": budget.amounts, "seconds": {**seconds, "total": round(sum(seconds.values()), 1)}}
    folder.write_json(SUMMARY, {**summary, "seed": known.get("seed", 0), "versions": versions()})


def _plain(config: SearchConfig | TrainConfig) -> dict[str, Any]:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    del values["seed"]
    return values


def _yaml(settings: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(settings, sort_keys=False)
