"""The command `tas search`: find the architecture."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from tas import data as data_sets
from tas.budget import Budget
from tas.commands.inputs import build_model, to_yaml, without_seed
from tas.distributed import from_main
from tas.errors import ConfigError
from tas.nn.supernet import Supernet
from tas.options import plain, split_patterns
from tas.pipeline.compress import short_search
from tas.pipeline.latency import LatencyConfig, known_latency, with_latency
from tas.pipeline.rank import rank
from tas.pipeline.search import SearchConfig
from tas.pipeline.search import search as search_model
from tas.pipeline.trace import trace as trace_model
from tas.run import GRAPH, RunFolder
from tas.show import print_graph
from tas.space import SearchSpace, SpaceConfig
from tas.storage import write_text
from tas.task import dtype_of, require_fit_for_data
from tas.trackers import tracked

SEEDS: list[str] = ["search.seed"]  # options that follow --seed


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
    space: SpaceConfig = SpaceConfig(),  # noqa: B008
    keep: tuple[str, ...] | str = (),
    residuals: Literal["tied", "free"] = "tied",
    execution: Literal["compact", "dense"] = "compact",
    latency_batch: int = 1,
    latency: LatencyConfig = LatencyConfig(),  # noqa: B008
    seed: int = 0,
    output: str = "runs/search",
    resume: bool = False,
    tracker: str | None = None,
    json: bool = False,
) -> None:
    """Search the architecture under a budget; writes graph.json, architecture.json and record.jsonl.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION
        weights: trained weights of the full model; not needed for a search from scratch
        pretrained: use the released weights of torchvision or timm
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        budget: upper bounds of the small model, 50% of the macs by default
        search: how the architecture is searched
        space: which sizes may be chosen
        keep: modules to leave alone, as patterns of their paths, such as layer1.*,fc
        residuals: one width per residual stream (tied), or one per convolution as in the paper (free)
        execution: of the supernet; both compute the same, compact is faster on a CPU
        latency_batch: images in the timed forward pass
        latency: how latency is predicted, where a budget bounds it
        seed: of everything random
        output: folder of the results
        resume: go on with the interrupted search in the output folder
        tracker: also send every epoch's numbers to tensorboard, wandb, mlflow or another that accelerate knows
        json: print the architecture and its cost as JSON
    """
    if search.start == "trained" and weights is None and not pretrained:
        raise ConfigError(
            "a search from a trained start needs --weights or --pretrained; from scratch, add --search.start scratch "
            "--search.logits_start random --search.trials 0 --search.epochs 600"
        )
    source = data_sets.load(data, data_dir=data_dir, download=download, image_size=image_size)
    full = build_model(model, source.num_classes, weights, pretrained, seed)
    example = torch.zeros(1, *source.input_shape, dtype=dtype_of(full))
    graph = trace_model(full, example, keep=keep, residuals=residuals)
    require_fit_for_data(full, source)
    offered = SearchSpace.of(graph, space)
    if budget.latency is not None:
        known = from_main(known_latency)(output) if resume else None
        graph = (
            replace(graph, latency=known)
            if known
            else from_main(with_latency)(full, graph, offered, example, batch=latency_batch, config=latency)
        )
    budget.require_reachable(graph, offered)
    settings = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
    settings |= {"image_size": image_size, "budget": asdict(budget), "search": without_seed(search)}
    settings |= {
        "space": plain(space),
        "keep": list(split_patterns(keep)),
        "residuals": residuals,
        "execution": execution,
        "latency_batch": latency_batch,
        "latency": plain(latency),
        "seed": seed,
    }
    run = RunFolder.open(output, to_yaml(settings), resume=resume, results=["architecture.json"])
    run.write_json(GRAPH, graph.to_dict())
    supernet = Supernet(rank(full, graph) if search.start == "trained" else full, graph, offered, execution=execution)
    record = run.record()
    with tracked(record, tracker, folder=run.path, settings=settings):
        found = search_model(
            supernet, source, budget=budget, config=search, teacher=full if search.teacher_weight else None,
            record=record, checkpoint=run.checkpoint("search"),
        ).architecture  # fmt: skip
    write_text(Path(output) / "architecture.json", found.to_json())
    run.drop_checkpoints()
    cost = {
        name: {"full": graph.cost(name).exact(graph.full), "pruned": graph.cost(name).exact(found)}
        for name in ("macs", "params", *(["latency"] if graph.latency else []))
    }
    if json:
        print(json_module.dumps({"architecture": json_module.loads(found.to_json()), **cost}))
    else:
        print_graph(graph, offered, found)
        print(f"architecture: {output}/architecture.json; make the network with tas derive --run {output}")
