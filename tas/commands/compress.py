"""The command `tas compress`: shrink a model to a budget."""

from __future__ import annotations

import time
from typing import Literal

from tas.budget import Budgets
from tas.commands.inputs import build_model, load_data
from tas.errors import ConfigError
from tas.options import split_patterns
from tas.pipeline.compress import CompressConfig, short_search, short_teacher, short_train
from tas.pipeline.compress import compress as compress_model
from tas.pipeline.derive import Weights
from tas.pipeline.latency import LatencyConfig
from tas.pipeline.search import SearchConfig
from tas.pipeline.train import TrainConfig
from tas.show import print_runs, say
from tas.space import SpaceConfig

SEEDS: list[str] = ["search.seed", "train.seed", "teacher.seed"]  # options that follow --seed


def compress(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    budget: Budgets = Budgets(),  # noqa: B008  a frozen value
    search: SearchConfig = short_search(),  # noqa: B008
    train: TrainConfig = short_train(),  # noqa: B008
    teacher: TrainConfig = short_teacher(),  # noqa: B008
    space: SpaceConfig = SpaceConfig(),  # noqa: B008
    keep: tuple[str, ...] | str = (),
    residuals: Literal["tied", "free"] = "tied",
    execution: Literal["compact", "dense"] = "compact",
    init: Weights = "reconstruct",
    latency_batch: int = 1,
    latency: LatencyConfig = LatencyConfig(),  # noqa: B008
    seed: int = 0,
    output: str | None = None,
    resume: bool = False,
    tracker: str | None = None,
    json: bool = False,
) -> None:
    """Shrink a model to a budget, or to several from one search: search, derive, distil, measure, report.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION
        weights: trained weights of the full model (safetensors or a state dict); without them it is trained first
        pretrained: use the released weights of torchvision, timm or transformers
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        budget: upper bounds of the small model, 50% of the macs by default; 30%,50%,70% derives and trains a model each
            from one search, with a folder each inside the output and a page that compares them
        search: how the architecture is searched
        train: how the small model is trained, with the full one as its teacher
        teacher: how the full model is trained when it comes without weights
        space: which sizes may be chosen
        keep: modules to leave alone, as patterns of their paths, such as layer1.*,fc
        residuals: one width per residual stream (tied), or one per convolution as in the paper (free)
        execution: of the supernet; both compute the same, compact is faster on a CPU
        init: the small model inherits weights; inherits them and is fitted layer by layer to what the full one makes of
            training images (reconstruct); averages neighbouring channels (interpolate); or starts fresh as in the paper
        latency_batch: images in the timed forward pass
        latency: how latency is predicted, where a budget bounds it
        seed: of everything random
        output: folder of the results, runs/DATE-TIME by default
        resume: go on with the interrupted run in the output folder
        tracker: also send every epoch's numbers to tensorboard, wandb, mlflow or another that accelerate knows
        json: print the summary as JSON
    """
    if resume and output is None:
        raise ConfigError("resume needs the folder of the run; add --output FOLDER")
    output = output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
    origin = {
        "model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir,
        "image_size": image_size, "normalization": normalization,
    }  # fmt: skip
    source = load_data(origin, download)
    full = build_model(model, source.num_classes, weights, pretrained, seed)
    config = CompressConfig(
        search=search, train=train, teacher=teacher, space=space, keep=split_patterns(keep),
        residuals=residuals,
        execution=execution, init=init, latency_batch=latency_batch, latency=latency, seed=seed,
    )  # fmt: skip
    made = compress_model(
        full, source, budget=budget.each, config=config, output=output, resume=resume,
        train_teacher=weights is None and not pretrained, origin=origin, tracker=tracker,
    )  # fmt: skip
    print_runs({str(one.folder): one.summary for one in made}, as_json=json)
    if not json:
        say(f"model, architecture and report: {output}/report.html")
