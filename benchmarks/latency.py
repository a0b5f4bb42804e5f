"""How far predictions of latency are off, on random architectures that were not part of the fit.

python benchmarks/latency.py --model resnet18 --batch 1 --threads 1
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torchvision

from tas.architecture import Architecture
from tas.nn.surgery import cut
from tas.pipeline.latency import LatencyConfig, with_latency
from tas.pipeline.trace import trace
from tas.space import SearchSpace
from tas.timing import measure_latency


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


def main() -> None:
    """Print the errors of one setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.02, help="per layer; models get twenty times as much")
    parser.add_argument("--cache", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu, with one thread, on a busy machine"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    model = torchvision.models.get_model(options.model).eval().to(options.device)
    example = torch.zeros(1, 3, options.size, options.size, device=options.device)
    graph = trace(model, example)
    space = SearchSpace.of(graph)
    started = time.perf_counter()
    config = LatencyConfig(
        threads=options.threads, clock=options.clock, grid=options.grid, seconds=options.seconds, cache=options.cache
    )
    graph = with_latency(model, graph, space, example, batch=options.batch, config=config)
    assert graph.latency is not None
    seconds = time.perf_counter() - started
    tried = [graph.full, *random_architectures(space, options.count, seed=7)]
    small = [cut(model, graph, architecture).eval() for architecture in tried]
    measured = measure_latency(small, example, batch=options.batch, seconds=20 * options.seconds, clock=options.clock)
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
        f"{options.model} {options.size}x{options.size} batch {options.batch} on {graph.latency.device}, "
        f"{torch.get_num_threads()} threads: median error {100 * np.median(away):.1f} %, "
        f"largest {100 * away.max():.1f} %, "
        f"of the fit {100 * graph.latency.error:.1f} %; in proportion to macs it would be "
        f"{100 * np.median(np.abs(1 / np.array(ratios[1:]) - 1)):.1f} %; table and fit took {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
