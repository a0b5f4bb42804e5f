"""The command `tas search`: find the architecture, or decode a finished search for another budget."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tas.architecture import Architecture
from tas.budget import Budget
from tas.commands.inputs import build_model, classes_of, config_of, load_data, origin_of, without_seed
from tas.data.source import example_of
from tas.distributed import from_main
from tas.errors import ConfigError
from tas.nn.supernet import Supernet
from tas.options import plain, split_patterns, to_yaml
from tas.pipeline.compress import short_search
from tas.pipeline.derive import derive
from tas.pipeline.latency import LatencyConfig, latency_of_run
from tas.pipeline.rank import rank
from tas.pipeline.search import SearchConfig
from tas.pipeline.search import search as search_model
from tas.pipeline.store import save
from tas.pipeline.trace import trace as trace_model
from tas.record import Record
from tas.run import ARCHITECTURE, GRAPH, RECORD, SCORES, WEIGHTS, RunFolder
from tas.scores import Scores
from tas.show import print_graph, say, say_json
from tas.space import SearchSpace, SpaceConfig
from tas.storage import write_text
from tas.task import dtype_of, require_fit_for_data
from tas.trackers import require_tracker, tracked

SEEDS: list[str] = ["search.seed"]  # options that follow --seed


def search(
    *,
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    budget: Budget = Budget(),  # noqa: B008
    search: SearchConfig = short_search(),  # noqa: B008
    space: SpaceConfig = SpaceConfig(),  # noqa: B008
    keep: tuple[str, ...] | str = (),
    residuals: Literal["tied", "free"] = "tied",
    execution: Literal["compact", "dense"] = "compact",
    latency_batch: int = 1,
    latency: LatencyConfig = LatencyConfig(),  # noqa: B008
    seed: int = 0,
    from_run: str | None = None,
    output: str = "runs/search",
    resume: bool = False,
    tracker: str | None = None,
    json: bool = False,
) -> None:
    """Search the architecture under a budget; writes graph.json, scores.json, architecture.json and record.jsonl.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION;
            cifar_resnet:20 by default
        weights: trained weights of the full model; not needed for a search from scratch
        pretrained: use the released weights of torchvision, timm or transformers
        data: digits, cifar10, cifar100 or folder:PATH; digits by default
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        budget: upper bounds of the small model, 50% of the macs by default
        search: how the architecture is searched
        space: which sizes may be chosen
        keep: modules to leave alone, as patterns of their paths, such as layer1.*,fc
        residuals: one width per residual stream (tied), or one per convolution as in the paper (free)
        execution: of the supernet; both compute the same, compact is faster on a CPU
        latency_batch: images in the timed forward pass
        latency: how latency is predicted, where a budget bounds it
        seed: of everything random
        from_run: (--from RUN) decode the scores of a finished search or compress run for this budget instead, without a
            new search or data, and derive the network; model and weights are those of the run by default
        output: folder of the results
        resume: go on with the interrupted search in the output folder
        tracker: also send every epoch's numbers to tensorboard, wandb, mlflow or another that accelerate knows
        json: print the architecture and its cost as JSON
    """
    names = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
    names |= {"image_size": image_size, "normalization": normalization}
    settings = {
        "budget": asdict(budget),
        "search": without_seed(search),
        "space": plain(space),
        "keep": list(split_patterns(keep)),
        "residuals": residuals,
        "execution": execution,
        "latency_batch": latency_batch,
        "latency": plain(latency),
        "seed": seed,
    }
    require_tracker(tracker)
    if from_run is not None:
        scores, found = _decode(from_run, names, settings, output=output, resume=resume)
        _tell(scores, found, output, json=json, has_weights=False)
        return
    origin = origin_of(None, names)
    settings = {**origin, **settings}
    if search.start == "trained" and weights is None and not pretrained:
        raise ConfigError(
            "a search from a trained start needs --weights or --pretrained; from scratch, add --search.start scratch "
            "--search.logits_start random --search.architectures 0 --search.epochs 600"
        )
    source = load_data(origin, download)
    full = build_model(origin["model"], source.num_classes, weights, pretrained, seed)
    example = example_of(source, dtype_of(full))
    graph = trace_model(full, example, keep=keep, residuals=residuals)
    require_fit_for_data(full, source)
    offered = SearchSpace.of(graph, space)
    if budget.latency is not None:
        graph = from_main(latency_of_run)(
            full, graph, offered, example, batch=latency_batch, budgets=[budget], config=latency,
            folder=output if resume else None,
        )  # fmt: skip
    budget.require_reachable(graph, offered)
    run = RunFolder.open(output, to_yaml(settings), resume=resume, results=[ARCHITECTURE])
    run.write_json(GRAPH, graph.to_dict())
    supernet = Supernet(rank(full, graph) if search.start == "trained" else full, graph, offered, execution=execution)
    record = run.record()
    with tracked(record, tracker, folder=run.path, settings=settings):
        found = search_model(
            supernet, source, budget=budget, config=search, teacher=full if search.teacher_weight else None,
            record=record, checkpoint=run.checkpoint("search"),
        )  # fmt: skip
    run.write_json(SCORES, found.scores.to_dict())
    write_text(Path(output) / ARCHITECTURE, found.architecture.to_json())
    run.drop_checkpoints()
    _tell(found.scores, found.architecture, output, json=json, has_weights=weights is not None or pretrained)


def _decode(
    run: str, names: Mapping[str, Any], given: Mapping[str, Any], *, output: str, resume: bool
) -> tuple[Scores, Architecture]:
    """What a finished run would have chosen under another budget, as a run of its own with the network derived."""
    scores = Scores.read(run)
    settings = _settings_of(run, names, given)
    found = scores.decode(Budget(**settings["budget"]))
    weights, pretrained, small = settings["weights"], settings["pretrained"], None
    if weights or pretrained:
        full = build_model(settings["model"], classes_of(scores.graph), weights, pretrained, settings["seed"])
        small = derive(rank(full, scores.graph), scores.graph, found)
    folder = RunFolder.open(output, to_yaml({"from_run": run, **settings}), resume=resume, results=[ARCHITECTURE])
    folder.write_json(GRAPH, scores.graph.to_dict())
    folder.write_json(SCORES, scores.to_dict())
    record = folder.record()
    searched = [row for row in Record.read(Path(run) / RECORD).rows if row["stage"] == "search"]
    for row in [row for row in searched if row.get("part") != "halving"][len(record.rows) :]:
        record.add(**row)
    if small is None:
        write_text(Path(output) / ARCHITECTURE, found.to_json())
    else:
        save(output, small, scores.graph, found)
    return scores, found


def _settings_of(run: str, names: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a finished run, with another budget, and with other places of model and data where given.

    Raises:
        ConfigError: an option is given that only another search could follow, or the model is not known.
    """
    known, origin = config_of(run), origin_of(run, names, needs=[])
    usual = {name: parameter.default for name, parameter in inspect.signature(search).parameters.items()}
    usual |= {"search": without_seed(usual["search"]), "keep": []}
    usual |= {name: plain(usual[name]) for name in ("space", "latency")}
    if fixed := [name for name in given if name != "budget" and given[name] not in (usual[name], known.get(name))]:
        raise ConfigError(
            f"--from takes the option {fixed[0]} from {run}, whose search has used it; leave it out, or search anew "
            f"without --from"
        )
    if not origin["model"]:
        raise ConfigError(
            f"{run} was made in Python and names no model; add --model and --weights, or decode it there with "
            f"tas.Scores.read({run!r}).decode(budget)"
        )
    return {**origin, **given, **{name: known[name] for name in given if name in known and name != "budget"}}


def _tell(scores: Scores, found: Architecture, output: str, *, json: bool, has_weights: bool) -> None:
    graph = scores.graph
    if json:
        cost = {
            name: {"full": graph.full_cost(name), "pruned": graph.cost(name).exact(found)}
            for name in ("macs", "params", *(["latency"] if graph.latency else []))
        }
        say_json({"architecture": found.to_dict(), **cost})
        return
    print_graph(graph, scores.space, found)
    after = (
        f"network: {output}; train it with tas train --run {output}"
        if (Path(output) / WEIGHTS).is_file()
        else f"architecture: {output}/{ARCHITECTURE}; make the network with tas derive --run {output}"
        + ("" if has_weights else " and --weights, or with --init fresh")
    )
    say(after)
