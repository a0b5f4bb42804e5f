"""The command `tas train`: train a full or a derived model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tas.architecture import Architecture
from tas.commands.inputs import build_model, found_in, load_data, origin_of, without_seed
from tas.data import Source
from tas.distributed import from_main, is_main_process
from tas.graph import Graph
from tas.options import plain, to_yaml
from tas.pipeline.compress import short_teacher, short_train
from tas.pipeline.measure import measure as measure_model
from tas.pipeline.store import load, save, save_full
from tas.pipeline.train import TrainConfig
from tas.pipeline.train import train as train_model
from tas.run import WEIGHTS, RunFolder
from tas.show import say, say_json
from tas.task import require_fit_for_data, require_fit_for_test
from tas.trackers import require_tracker, tracked

SEEDS: list[str] = ["train.seed"]  # options that follow --seed


def defaults_for(options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow from these options: inherited weights are trained as in `compress`, gently."""
    if not options["run"]:
        return {}
    return {f"train.{name}": value for name, value in plain(short_train()).items() if name != "seed"}


def train(
    *,
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    run: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    train: TrainConfig = short_teacher(),  # noqa: B008
    seed: int = 0,
    output: str = "runs/train",
    resume: bool = False,
    tracker: str | None = None,
    json: bool = False,
) -> None:
    """Train a full model, or with --run a derived one that learns from the full model.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION;
            the run's, or cifar_resnet:20, by default
        weights: where a full model starts; with --run, the trained teacher, by default that of the run
        pretrained: use the released weights of torchvision, timm or transformers
        run: folder of a derived model; its model.safetensors is replaced by the trained one. What is not said of model
            and data is read from its config.yaml
        data: digits, cifar10, cifar100 or folder:PATH; the run's, or digits, by default
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        train: how it is trained; with --run the defaults are those of tas compress
        seed: of everything random
        output: folder for the weights of a full model; not used with --run
        resume: go on with the interrupted training in the output folder; with --run that happens by itself
        tracker: also send every epoch's numbers to tensorboard, wandb, mlflow or another that accelerate knows
        json: print the accuracy as JSON
    """
    require_tracker(tracker)
    found = found_in(run) if run else None
    names = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
    origin = origin_of(run, {**names, "image_size": image_size, "normalization": normalization})
    source = load_data(origin, download)
    full = build_model(
        origin["model"], source.num_classes, origin["weights"], origin["pretrained"], seed, fresh_head=run is None
    )
    require_fit_for_data(full, source)
    require_fit_for_test(full, source)
    settings = {**origin, "train": without_seed(train), "seed": seed}
    if run and found:
        place, trained = Path(run) / WEIGHTS, _train_derived(run, found, full, source, train, settings, tracker)
    else:
        place = Path(output) / WEIGHTS
        trained = _train_full(output, full, source, train, settings, tracker, resume=resume)
    profile = from_main(measure_model)(trained, source)
    if json:
        say_json(profile.to_dict())
    else:
        say(f"{place}: test accuracy {profile.accuracy:.2f} %")


def _train_derived(
    run: str,
    found: tuple[Graph, Architecture],
    full: nn.Module,
    source: Source,
    config: TrainConfig,
    settings: Mapping[str, Any],
    tracker: str | None,
) -> nn.Module:
    """The network of a run's folder, taught by the full one where that is trained; its weights are replaced there."""
    folder = RunFolder(Path(run))
    teacher = full if settings["weights"] or settings["pretrained"] else None
    if teacher is None and config.uses_teacher and is_main_process():
        print(f"tas train: {run} holds no trained full model, so its model learns from the labels alone; "
              f"--weights names a teacher", file=sys.stderr)  # fmt: skip
    folder.agree_to_train(to_yaml(settings))
    small, record = load(run, full), folder.record()
    with tracked(record, tracker, folder=run, settings=plain(config)):
        small = train_model(
            small, source, teacher=teacher, config=config, record=record, checkpoint=folder.checkpoint("train")
        )
    folder.drop_results()
    save(run, small, *found)
    folder.drop_checkpoints()
    return small


def _train_full(
    output: str,
    full: nn.Module,
    source: Source,
    config: TrainConfig,
    settings: Mapping[str, Any],
    tracker: str | None,
    *,
    resume: bool,
) -> nn.Module:
    folder = RunFolder.open(output, to_yaml(settings), resume=resume, results=[WEIGHTS])
    record = folder.record()
    with tracked(record, tracker, folder=output, settings=settings):
        trained = train_model(full, source, config=config, record=record, checkpoint=folder.checkpoint("train"))
    save_full(Path(output) / WEIGHTS, trained)
    folder.drop_checkpoints()
    return trained
