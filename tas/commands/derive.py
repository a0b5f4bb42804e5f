"""The command `tas derive`: make the small network."""

from __future__ import annotations

from pathlib import Path

from tas.commands.inputs import build_model, classes_of, found_in, load_data, origin_of
from tas.errors import ConfigError, RunError
from tas.pipeline.derive import Weights, recalibrate
from tas.pipeline.derive import derive as derive_model
from tas.pipeline.rank import rank
from tas.pipeline.store import save
from tas.run import SUMMARY, TRAINED, RunFolder
from tas.show import say, say_json

SEEDS: list[str] = []  # options that follow --seed


def derive(
    *,
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    run: str = "runs/search",
    init: Weights = "inherit",
    data: str | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Make the small network of an architecture; writes model.safetensors into the run's folder.

    Args:
        model: the model that was searched; that of the run's config.yaml by default
        weights: its trained weights, to inherit from; those of the run by default
        pretrained: use the released weights of torchvision, timm or transformers
        run: folder with graph.json and architecture.json, from tas search
        init: inherit the most important channels; inherit them and fit every layer to what the full model makes of the
            training images of --data (reconstruct); average neighbouring ones (interpolate); or start fresh
        data: data set to reconstruct on, and to recalibrate the norms on; without it they keep their old statistics
            until trained
        data_dir: where cifar10 and cifar100 lie
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        seed: of fresh weights, and of the images that are looked at
        json: print the costs as JSON
    """
    graph, architecture = found_in(run)
    if trained := [name for name in (SUMMARY, TRAINED) if (Path(run) / name).is_file()]:
        raise RunError(
            f"{run} holds a trained network (it has {' and '.join(trained)}); derive another one elsewhere (tas search "
            f"--from {run} --budget.macs … --output OTHER), or remove {' and '.join(trained)} if it may go"
        )
    names = {"model": model, "weights": weights, "pretrained": pretrained, "data_dir": data_dir}
    names |= {"image_size": image_size, "normalization": normalization}
    origin = origin_of(run, names, needs=["model"])
    if init != "fresh" and origin["weights"] is None and not origin["pretrained"]:
        raise ConfigError("there is nothing to inherit; give --weights or --pretrained, or --init fresh")
    full = build_model(origin["model"], classes_of(graph), origin["weights"], origin["pretrained"], seed)
    if init == "reconstruct" and data is None:
        raise ConfigError("to reconstruct takes training images; give --data, or --init inherit")
    source = None if data is None else load_data({**origin, "data": data})
    ranked = rank(full, graph) if init in ("inherit", "reconstruct") else full
    small = derive_model(ranked, graph, architecture, weights=init, data=source, seed=seed)
    if source is not None:
        small = recalibrate(small, source, seed=seed)
    save(run, small, graph, architecture)
    RunFolder(Path(run)).drop_checkpoints()  # of the training of another derived network
    cost = {"macs": graph.macs(architecture), "params": graph.params(architecture)}
    if json:
        say_json(cost)
    else:
        say(f"{run}/model.safetensors: {cost['macs']:,} macs, {cost['params']:,} params")
