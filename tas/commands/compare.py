"""The command `tas compare`: methods side by side under one recipe."""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from typing import Any, Literal

from torch import nn

from tas.commands.inputs import build_model, load_data
from tas.data import Source
from tas.distributed import num_processes, usable_cores
from tas.errors import ConfigError, RunError
from tas.options import split_patterns
from tas.pipeline.compare import CompareConfig
from tas.pipeline.compare import compare as compare_methods
from tas.pipeline.comparison.plan import DEFAULT_METHODS, DEFAULT_TRANSFERS
from tas.pipeline.comparison.table import failures
from tas.pipeline.compress import CompressConfig, short_search, short_teacher, short_train
from tas.pipeline.rivals import RivalConfig
from tas.pipeline.search import SearchConfig
from tas.pipeline.train import TrainConfig
from tas.show import print_comparison, say, say_json
from tas.space import SpaceConfig

SEEDS: list[str] = ["search.seed", "train.seed", "teacher.seed", "rivals.seed"]  # options that follow --seed


def compare(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    methods: str | list[Any] | dict[str, Any] = DEFAULT_METHODS,
    transfers: str | list[str] = DEFAULT_TRANSFERS,
    seeds: str | int | list[int] = "0 1 2",
    budgets: str | int | float | list[Any] | dict[str, Any] = "50%",
    count_search: bool = True,
    search: SearchConfig = short_search(),  # noqa: B008  a frozen value
    train: TrainConfig = short_train(),  # noqa: B008
    teacher: TrainConfig = short_teacher(),  # noqa: B008
    space: SpaceConfig = SpaceConfig(),  # noqa: B008
    rivals: RivalConfig = RivalConfig(),  # noqa: B008
    keep: tuple[str, ...] | str = (),
    residuals: Literal["tied", "free"] = "tied",
    execution: Literal["compact", "dense"] = "compact",
    init: Literal["inherit", "reconstruct", "interpolate"] = "reconstruct",
    workers: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    output: str | None = None,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Compare methods: each searched and trained with several seeds, under one recipe and one budget or several.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION
        weights: trained weights of the full model (safetensors or a state dict); without them it is trained first
        pretrained: use the released weights of torchvision, timm or transformers
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        methods: tas, tas-width, tas-depth, tas-paper, uniform, random, evolution, l1, l2, fpgm, taylor, bn_scale, sfp,
            between spaces or commas; each may have options, tas:search.halving_steps=400,space.round_to=8; in YAML a
            list of these, or a mapping of labels to {method, options}
        transfers: none, init, kd, dkd, dist, hints, attention, init+kd and so on, between spaces or commas
        seeds: of the searches and trainings, between spaces or commas
        budgets: upper bounds of the small model, such as 50% or params=30%, between spaces or commas; in YAML also
            mappings
        count_search: train.epochs are passes over the training set in search and training together
        search: how tas searches
        train: how every small model is trained
        teacher: how the full model is trained when it comes without weights
        space: which sizes may be chosen
        rivals: how the methods other than tas choose
        keep: modules to leave alone, as patterns of their paths, such as layer1.*,fc
        residuals: one width per residual stream (tied), or one per convolution as in the paper (free)
        execution: of the supernet; both compute the same, compact is faster on a CPU
        init: with a transfer that begins with init, weights are inherited; inherited and fitted layer by layer to what
            the full model makes of training images (reconstruct); or averages of neighbouring channels (interpolate)
        workers: processes side by side; by default one per GPU, without GPUs as many as there are cores for threads
        threads: of each worker, 1 by default
        seed: of the full model, where it is trained first
        output: folder of the results, runs/compare-DATE-TIME by default
        resume: do what is missing in the output folder; methods, transfers, seeds and budgets may be added
        json: print what was found as JSON
    """
    if num_processes() > 1:
        raise ConfigError("tas compare starts processes of its own; run it without a launcher, with --workers")
    if resume and output is None:
        raise ConfigError("resume needs the folder of the comparison; add --output FOLDER")
    output = output or f"runs/compare-{time.strftime('%Y%m%d-%H%M%S')}"
    job = CompressConfig(
        search=search, train=train, teacher=teacher, space=space, keep=split_patterns(keep), residuals=residuals,
        execution=execution,
        init=init, seed=seed,
    )  # fmt: skip
    workers = _workers(threads) if workers is None else workers
    config = CompareConfig(
        methods=methods, transfers=transfers, seeds=seeds, budgets=budgets, job=job, rivals=rivals,
        count_search=count_search, workers=workers, threads=1 if threads is None else threads,
    )  # fmt: skip
    names = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
    names |= {"image_size": image_size, "normalization": normalization}
    full, source = _build(names, seed, download)
    result = compare_methods(
        full, source, config=config, output=output, resume=resume, train_teacher=weights is None and not pretrained,
        rebuild=partial(_build, names, seed), origin=names, command=_command(output),
    )  # fmt: skip
    if json:
        say_json(result.summary)
    else:
        print_comparison(result.summary)
        say(f"table, plots and numbers: {output}/compare.html, compare.md, compare.json")
    if result.failed:
        words = "; ".join(f"{one['job']}: {one['error']}" for one in result.failed)
        raise RunError(f"{failures(result.failed)}, the others are done (try again with --resume): {words}")


def _build(names: dict[str, Any], seed: int, download: bool = False) -> tuple[nn.Module, Source]:
    """Model and data by name, here and in every worker."""
    source = load_data(names, download)
    return build_model(names["model"], source.num_classes, names["weights"], names["pretrained"], seed), source


def _workers(threads: int | None) -> int:
    import torch

    return torch.cuda.device_count() or max(1, usable_cores() // (threads or 1))


def _command(output: str) -> str:
    """What was typed; where it was called from Python, what does the same."""
    words = sys.argv[1:]
    return shlex.join(["tas", *words]) if words[:1] == ["compare"] else f"tas compare --config {output}/config.yaml"
