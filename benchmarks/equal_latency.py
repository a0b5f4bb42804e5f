"""Whether a budget of latency makes a better network than one of multiply-adds that is equally fast.

python benchmarks/equal_latency.py --weights teacher.safetensors --data folder:cifar10 --image-size 16 --write FILE

Per seed: search under a budget of multiply-adds; predict what the result takes on this machine; search again from the
same scores with that time as the budget; measure both beside the full model; train both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

import tas
from tas.architecture import Architecture
from tas.data import Source
from tas.graph import Graph
from tas.pipeline.compress.config import CompressConfig, short_search
from tas.pipeline.compress.stages import find_architecture
from tas.pipeline.latency import LatencyConfig, with_latency
from tas.pipeline.measure import evaluate
from tas.record import versions
from tas.timing import device_name, measure_latency, thread_count


def pair(
    model: torch.nn.Module, graph: Graph, source: Source, config: CompressConfig, budget: str, batch: int
) -> tuple[torch.nn.Module, Graph, dict[str, Architecture]]:
    """The ranked model, the graph that knows latencies, and the architectures of both budgets."""
    space, example = tas.SearchSpace.of(graph), torch.zeros(1, *source.input_shape)
    ranked, found = find_architecture(model, graph, space, source, budget=tas.Budget(macs=budget), config=config)
    timed = with_latency(model, graph, space, example, batch=batch, config=config.latency)
    limit = timed.cost("latency").exact(found.architecture) / 1e6
    _, faster = find_architecture(
        model, timed, space, source, budget=tas.Budget(latency=f"{limit:.5f}ms"), config=config,
        scores=replace(found.scores, graph=timed),
    )  # fmt: skip
    return ranked, timed, {"macs": found.architecture, "latency": faster.architecture}


def compared(options: argparse.Namespace, model: torch.nn.Module, source: Source, seed: int) -> dict[str, Any]:
    """One seed: cost, times and accuracy of the full model and of both small ones."""
    example = torch.zeros(1, *source.input_shape)
    config = CompressConfig(
        search=replace(short_search(), precision=options.precision), seed=seed,
        latency=LatencyConfig(threads=options.threads, clock=options.clock, cache=options.cache),
    )  # fmt: skip
    graph = tas.trace(model, example)
    ranked, timed, chosen = pair(model, graph, source, config, options.budget, options.batch)
    small = {name: tas.derive(ranked, timed, architecture) for name, architecture in chosen.items()}
    times = measure_latency(
        [model, *small.values()], example, batch=options.batch, seconds=options.seconds, clock=options.clock, rounds=15
    )
    row: dict[str, Any] = {"seed": seed, "full": {"latency_ms": times[0][0], "spread_ms": times[0][1]}}
    for (name, network), (median, spread) in zip(small.items(), times[1:], strict=True):
        train = tas.TrainConfig(
            epochs=options.epochs, warmup_epochs=1, batch_size=128, learning_rate=options.learning_rate,
            precision=options.precision, seed=seed,
        )  # fmt: skip
        accuracy = evaluate(tas.train(network, source, teacher=model, config=train), source)
        row[name] = {
            "accuracy": accuracy, "macs": timed.macs(chosen[name]) / timed.macs(), "latency_ms": median,
            "spread_ms": spread, "predicted_ms": timed.cost("latency").exact(chosen[name]) / 1e6,
            "architecture": asdict(chosen[name]),
        }  # fmt: skip
        print(
            f"seed {seed}, budget of {name}: {accuracy:.2f} %, {row[name]['macs']:.1%} of the macs, "
            f"{median:.3f} ± {spread:.3f} ms ({median / times[0][0]:.1%})",
            flush=True,
        )
    return row


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar_resnet:20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--budget", default="50%", help="of multiply-adds, of the first search")
    parser.add_argument("--batch", type=int, default=32, help="images in a timed pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, per model")
    parser.add_argument("--cache", default="")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    source = tas.data.load(options.data, **({"image_size": options.image_size} if options.image_size else {}))
    model = tas.models.load(options.model, num_classes=source.num_classes, weights=options.weights)
    with thread_count(options.threads):
        rows = [compared(options, model, source, seed) for seed in options.seeds]
        full = evaluate(model, source)
    print(f"full model: {full:.2f} %")
    for name in ("macs", "latency"):
        values = [row[name]["accuracy"] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        shares = statistics.mean(row[name]["latency_ms"] / row["full"]["latency_ms"] for row in rows)
        print(f"budget of {name}: {statistics.mean(values):.2f} ± {spread:.2f} %, {shares:.1%} of the latency")
    if options.write:
        facts = {
            "command": " ".join(sys.argv), "date": date.today().isoformat(), "device": device_name(torch.device("cpu")),
            "versions": versions(), "full_accuracy": full,
        }  # fmt: skip
        options.write.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
