"""How far predictions of latency are off, and whether budgets of latency hold when the small network is measured.

python benchmarks/latency.py --model resnet18 --batch 1 --threads 1
    predicted against measured, on random architectures that were not part of the fit
python benchmarks/latency.py --model resnet18 --batch 1 32 --threads 1 --budget 60% --seeds 10 --data folder:cifar10
    per seed: train briefly, search by saliency under the budget, measure the derived network beside the full one
Under ONNX Runtime with --runtime onnxruntime --round-to 8.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

import tas
from tas.architecture import Architecture
from tas.nn.surgery import cut
from tas.onnx_file import in_onnx_runtime
from tas.pipeline.latency import LatencyConfig, with_latency
from tas.pipeline.trace import trace
from tas.run import GRAPH, SCORES
from tas.space import SearchSpace
from tas.timing import measure_latency, thread_count


def random_architectures(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Every width and depth uniform over its candidates."""
    draw = np.random.default_rng(seed)
    return [
        Architecture(
            {name: int(draw.choice(sizes)) for name, sizes in space.widths.items()},
            {name: int(draw.choice(sizes)) for name, sizes in space.depths.items()},
        )
        for _ in range(count)
    ]


def prediction_errors(options: argparse.Namespace, batch: int) -> None:
    """Print predicted and measured times of random architectures, and the errors."""
    model = torchvision.models.get_model(options.model).eval().to(options.device)
    example = torch.zeros(1, 3, options.size, options.size, device=options.device)
    graph = trace(model, example)
    space = SearchSpace.of(graph, tas.SpaceConfig(round_to=options.round_to))
    started = time.perf_counter()
    graph = with_latency(model, graph, space, example, batch=batch, config=latency_config(options))
    assert graph.latency is not None
    seconds = time.perf_counter() - started
    tried = [graph.full, *random_architectures(space, options.count, seed=7)]
    small = [cut(model, graph, architecture).eval() for architecture in tried]
    measured = measure_latency(
        _running(small, example, options),
        example,
        batch=batch,
        seconds=20 * options.seconds,
        clock=options.clock,
        undisturbed=True,
    )
    predicted = [graph.cost("latency").exact(architecture) / 1e6 for architecture in tried]
    errors = [guess / median - 1 for guess, (median, _) in zip(predicted, measured, strict=True)]
    macs = [graph.macs(architecture) for architecture in tried]
    for guess, (median, spread), cost, error in zip(predicted, measured, macs, errors, strict=True):
        print(
            f"{cost:>14,} macs  predicted {guess:8.3f} ms  measured {median:8.3f} ± {spread:.3f}  {100 * error:+.1f} %"
        )
    away = np.abs(errors[1:])
    ratios = [value / measured[0][0] * macs[0] / cost for (value, _), cost in zip(measured, macs, strict=True)]
    print(
        f"{options.model} {options.size}x{options.size} batch {batch} on {graph.latency.device}, "
        f"{torch.get_num_threads()} threads, {options.runtime}: median error {100 * np.median(away):.1f} %, "
        f"largest {100 * away.max():.1f} %, "
        f"of the fit {100 * graph.latency.error:.1f} %; in proportion to macs it would be "
        f"{100 * np.median(np.abs(1 / np.array(ratios[1:]) - 1)):.1f} %; table and fit took {seconds:.0f} s",
        flush=True,
    )


def searched(options: argparse.Namespace, model: nn.Module, source: tas.data.Source, seed: int) -> tas.Scores:
    """Train the model for an epoch and measure saliency; scores in the folder `--keep` are not made again."""
    name = f"{options.model}-{options.size}" + (f"-by{options.round_to}" if options.round_to > 1 else "")
    folder = Path(options.keep) / f"{name}-seed{seed}" if options.keep else None
    if folder and (folder / SCORES).exists():
        return tas.Scores.read(folder)
    graph = trace(model, torch.zeros(1, 3, options.size, options.size))
    space = SearchSpace.of(graph, tas.SpaceConfig(round_to=options.round_to))
    config = tas.TrainConfig(epochs=1, warmup_epochs=0, batch_size=32, learning_rate=0.02, precision="bf16", seed=seed)
    model = tas.train(model, source, config=config)
    found = tas.search(
        tas.Supernet(tas.rank(model, graph), graph, space), source, budget="60%",
        config=tas.SearchConfig(
            start="trained", epochs=0, batch_size=32, logits_start="saliency", held_out_images=64, precision="bf16",
            interpolation="none", seed=seed,
        ),
    )  # fmt: skip
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GRAPH).write_text(graph.to_json(), encoding="utf-8")
        (folder / SCORES).write_text(json.dumps(found.scores.to_dict()), encoding="utf-8")
    return found.scores


def budgets_held(options: argparse.Namespace) -> None:
    """Print for every seed and batch size what the derived network takes, and how often the budget held."""
    source = tas.data.load(options.data, image_size=options.size)
    limit = float(options.budget.rstrip("%")) / 100
    example, found = torch.zeros(1, 3, options.size, options.size), []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = torchvision.models.get_model(options.model, num_classes=source.num_classes)
        found.append(searched(options, model, source, seed))
    for batch in options.batch if not options.only_search else ():
        held = strictly = 0
        model = torchvision.models.get_model(options.model, num_classes=source.num_classes)  # weights take no time
        for seed, scores in enumerate(found):
            graph = scores.graph
            budget, config = tas.Budget(latency=options.budget), latency_config(options)
            timed = with_latency(model, graph, scores.space, example, batch=batch, budgets=[budget], config=config)
            architecture = tas.Scores(scores.log_probabilities, timed, scores.space).decode(budget)
            pair = _running([model, tas.derive(model, timed, architecture)], example, options)
            (full, away), (small, spread) = measure_latency(
                pair, example, batch=batch, seconds=100 * options.seconds, rounds=15, clock=options.clock
            )
            noise = math.hypot(spread, limit * away) / full
            held, strictly = held + (small / full <= limit + noise), strictly + (small / full <= limit)
            print(
                f"seed {seed}, batch {batch}: {graph.macs(architecture) / graph.macs():.1%} of the macs, predicted "
                f"{timed.cost('latency').exact(architecture) / timed.full_cost('latency'):.1%}, measured "
                f"{small / full:.1%} ± {noise:.1%} of {full:.2f} ms",
                flush=True,
            )
        print(
            f"{options.model} {options.size}x{options.size} batch {batch}, {torch.get_num_threads()} threads, "
            f"{options.runtime}, budget "
            f"{options.budget}: held within the spread in {held} of {options.seeds} seeds, without it in {strictly}",
            flush=True,
        )


def _running(models: list[nn.Module], example: torch.Tensor, options: argparse.Namespace) -> list[nn.Module]:
    """The models in the runtime that is asked for."""
    return [in_onnx_runtime(model, example) for model in models] if options.runtime == "onnxruntime" else models


def latency_config(options: argparse.Namespace) -> LatencyConfig:
    """Of the library."""
    return LatencyConfig(
        runtime=options.runtime,
        threads=options.threads,
        clock=options.clock,
        grid=options.grid,
        seconds=options.seconds,
        cache=options.cache,
    )


def main() -> None:
    """Print the errors of one setting, or how often budgets hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runtime", default="pytorch", choices=["pytorch", "onnxruntime"])
    parser.add_argument("--round-to", type=int, default=1, help="candidates in multiples of this")
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--count", type=int, default=20, help="random architectures")
    parser.add_argument("--seconds", type=float, default=0.02, help="per layer; models get twenty times as much")
    parser.add_argument("--cache", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu, with one thread, on a busy machine"
    )
    parser.add_argument("--budget", help="of latency, such as 60%%: measure derived networks instead")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", default="digits", help="for the short trainings and the searches")
    parser.add_argument("--keep", help="folder where the searches' scores are kept for another call")
    parser.add_argument("--only-search", action="store_true", help="only make the scores that --keep keeps")
    options = parser.parse_args()
    with thread_count(options.threads):
        if options.budget:
            budgets_held(options)
            return
        for batch in options.batch:
            prediction_errors(options, batch)


if __name__ == "__main__":
    main()
