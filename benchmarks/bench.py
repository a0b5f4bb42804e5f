"""What searching costs, as ratios measured inside one process.

    python benchmarks/bench.py                                     every case
    python benchmarks/bench.py --only 'search:resnet*' --pairs 9   some of them; several patterns may be given
    python benchmarks/bench.py --list                              their names
    python benchmarks/bench.py --write bench.json                  the numbers as JSON, too

The two sides of a ratio run in turn, A B A B …; the figure is the median over the pairs, which a busy machine moves
less than seconds. Start-up runs in processes of its own. Seconds of a trace are the only figure that is not relative.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: of the case.
        figure: what was measured, with its unit where it is no ratio.
        target: upper bound.
        measured: median over the pairs; None where the case was skipped.
        pairs: both sides ran so many times.
        lowest: of the pairs.
        highest: of the pairs.
        skipped: why, or empty.
    """

    name: str
    figure: str
    target: float
    measured: float | None = None
    pairs: int = 0
    lowest: float | None = None
    highest: float | None = None
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """met, missed or skipped."""
        if self.measured is None:
            return "skipped"
        return "met" if self.measured <= self.target else "missed"


@dataclass(frozen=True)
class Case:
    """A figure and how it is measured; `measure` takes the number of pairs and gives one value per pair."""

    figure: str
    target: float
    measure: Callable[[int], list[float]]
    needs_gpu: bool = False
    needs_linux: bool = False


WARM_UP = 40  # steps of a search until most layer shapes it meets have a compiled kernel


def in_turn(one: Callable[[], Any], other: Callable[[], Any], pairs: int, *, warm_up: int = 0) -> list[float]:
    """Seconds of one side over seconds of the other, per pair; a first pair warms up and does not count.

    Before it, one side alone warms up for as many calls as asked.
    """
    ratios = []
    for _ in range(warm_up):
        one()
    for place in range(pairs + 1):
        seconds = [_seconds(side) for side in (one, other)]
        if place:
            ratios.append(seconds[0] / seconds[1])
    return ratios


def _seconds(action: Callable[[], Any]) -> float:
    import torch

    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sides(
    name: str, batch: int, size: int, *, execution: str = "compact", residuals: str = "tied", device: str = "cpu",
    interpolation: str = "none", compile: bool = False,
) -> tuple[Callable[[], None], Callable[[], None]]:  # fmt: skip
    """One weight and one architecture step of a search; two training steps of the full model.

    Logits are uniform, the most expensive moment; no teacher; fixed random images; the same optimiser. Both sides are
    channels last, and have batch norms, as searches and trainings of ours do. Without interpolation, as `compress`
    searches a trained model by default; average is the paper's.
    """
    import torch
    from torch.nn.functional import cross_entropy

    import tas
    from tas.nn.compiled import compiled
    from tas.pipeline.search.steps import Steps

    torch.manual_seed(0)
    model = tas.models.load(name)
    graph = tas.trace(model, torch.zeros(1, 3, size, size), residuals=residuals)  # type: ignore[arg-type]
    supernet = tas.Supernet(model, graph, tas.SearchSpace.of(graph), execution=execution)  # type: ignore[arg-type]
    torch.nn.init.zeros_(supernet.logits)
    for network in (supernet, model):
        network.to(device, memory_format=torch.channels_last).train()
    config = tas.SearchConfig(teacher_weight=0.0, logits_learning_rate=0.0, compile=compile)  # the logits stay uniform
    supernet.interpolation = interpolation  # type: ignore[assignment]
    steps = Steps(supernet, tas.Budget.of("50%"), config, None, None)
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )  # fmt: skip
    network = compiled(model, compile)
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device) % 10
    draw = torch.Generator(device).manual_seed(0)

    def searching() -> None:
        steps.weight_step(images, labels, 5.0, draw)
        steps.logits_step(images, labels, 5.0, draw)

    def training() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()

    return searching, training


def search_step(name: str, batch: int, size: int, **options: Any) -> Callable[[int], list[float]]:
    """A search step against training, in turn; see `sides`."""
    return lambda pairs: in_turn(*sides(name, batch, size, **options), pairs, warm_up=WARM_UP)


def peak_memory(name: str, batch: int, size: int, **environment: str) -> Callable[[int], list[float]]:
    """By how much a search step raises the peak of resident memory against training, each in its own process.

    The layers of a search have other sizes in every step, and glibc keeps what was freed for tensors of the sizes
    before; with MALLOC_MMAP_THRESHOLD_ in the environment it gives large blocks back, and the figure is what is needed.
    """

    def measure(pairs: int) -> list[float]:
        found = []
        for _ in range(min(pairs, 3)):
            grown = []
            for side in ("0", "1"):
                command = [sys.executable, __file__, "--peak-of", side, name, str(batch), str(size)]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
                )
                grown.append(float(done.stdout))
            found.append(grown[0] / grown[1])
        return found

    return measure


def print_peak(side: str, name: str, batch: str, size: str) -> None:
    """Growth of the peak over two rounds of one side, in kB; Linux alone tells."""
    action = sides(name, int(batch), int(size))[int(side)]
    Path("/proc/self/clear_refs").write_text("5")  # or the peak would be that of the trace
    before = _resident("VmRSS")
    action()
    action()
    print(_resident("VmHWM") - before)


def _resident(what: str) -> int:
    """Memory of this process in kB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def process_share(name: str, batch: int, size: int) -> Callable[[int], list[float]]:
    """Seconds of an epoch split over two processes over those of one process, in turn; one thread each."""

    def measure(pairs: int) -> list[float]:
        found = []
        for _ in range(min(pairs, 3)):
            seconds = []
            for count in ("2", "1"):
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
                command += [__file__, "--epoch-of", name, str(batch), str(size)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                seconds.append(float(done.stdout))
            found.append(seconds[0] / seconds[1])
        return found

    return measure


def print_epoch(name: str, batch: str, size: str) -> None:
    """Seconds of the second epoch of a training, printed by one of the processes that share its batches."""
    import torch

    import tas
    from tas.distributed import launched

    images = torch.randint(0, 256, (12 * int(batch), 3, int(size), int(size)), dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    source = tas.data.TensorSource(images, labels, images[:10], labels[:10], padding=4, flip=True)
    config, record = tas.TrainConfig(epochs=2, batch_size=int(batch), transfer="none"), tas.Record()
    with launched():
        tas.train(tas.models.load(name), source, config=config, record=record)
        print(record.epochs("train")[-1]["seconds"])


def loader_share(name: str, batch: int, size: int) -> Callable[[int], list[float]]:
    """Share of a training step that waits for its batch: images in memory, shuffled, cropped and mirrored."""

    def measure(pairs: int) -> list[float]:
        import torch
        from torch.nn.functional import cross_entropy

        import tas

        model = tas.models.load(name).train()
        images = torch.randint(0, 256, (batch * (pairs + 1), 3, size, size), dtype=torch.uint8)
        labels = torch.arange(len(images)) % 10
        source = tas.data.TensorSource(images, labels, images[:batch], labels[:batch], padding=4, flip=True)
        batches, shares = iter(source.train_batches(batch)), []
        for _ in range(pairs + 1):
            start = time.perf_counter()
            inputs, targets = next(batches)
            waited = time.perf_counter() - start
            worked = _seconds(lambda data=(inputs, targets): cross_entropy(model(data[0]), data[1]).backward())
            shares.append(waited / (waited + worked))
        return shares[1:]

    return measure


def trace_seconds(name: str, size: int) -> Callable[[int], list[float]]:
    """Seconds of a trace; what it imports is imported before."""

    def measure(pairs: int) -> list[float]:
        import torch

        import tas

        tas.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))
        model = tas.models.load(name).eval()
        return [_seconds(lambda: tas.trace(model, torch.zeros(1, 3, size, size))) for _ in range(min(pairs, 3))]

    return measure


def latency(name: str, batch: int, size: int) -> Callable[[int], list[float]]:
    """Latency of the model at half its multiply-adds over that of the full one; sizes are multiples of 8."""

    def measure(pairs: int) -> list[float]:
        import torch

        import tas

        model = tas.models.load(name).eval()
        graph = tas.trace(model, torch.zeros(1, 3, size, size))
        small = _half(model, graph)
        images = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            return in_turn(lambda: small(images), lambda: model(images), pairs)

    return measure


def _half(model: nn.Module, graph: Any) -> nn.Module:
    import tas

    for percent in range(100, 0, -1):
        sizes = {name: max(8, size * percent // 100 // 8 * 8) for name, size in graph.full.widths.items()}
        architecture = tas.Architecture(sizes, graph.full.depths)
        if graph.macs(architecture) <= graph.macs() / 2:
            return tas.derive(model, graph, architecture).eval()
    raise AssertionError("no share of the channels halves the multiply-adds")


def import_seconds(pairs: int) -> list[float]:
    """Seconds of `import tas` once torch is there, each in a process of its own."""
    code = "import torch, time; s = time.perf_counter(); import tas; print(time.perf_counter() - s)"
    command = [sys.executable, "-c", code]
    return [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(min(pairs, 3))
    ]


def help_seconds(pairs: int) -> list[float]:
    """Seconds of `tas --help`, the start of Python included."""
    command = [sys.executable, "-c", "import sys; from tas.cli import main; sys.argv = ['tas', '--help']; main()"]
    return [_seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(min(pairs, 3))]


_STEP = "search step / training step"
CASES = {
    "search:resnet20": Case(_STEP, 0.70, search_step("cifar_resnet:20", 128, 32)),
    "search:resnet56": Case(_STEP, 0.70, search_step("cifar_resnet:56", 128, 32)),
    "search:resnet18": Case(_STEP, 0.85, search_step("torchvision:resnet18", 32, 64)),
    "search:mobilenet_v2": Case(_STEP, 0.85, search_step("torchvision:mobilenet_v2", 32, 64)),
    "search:resnet20:cwi": Case(_STEP, 0.70, search_step("cifar_resnet:20", 128, 32, interpolation="average")),
    "search:mobilenet_v2:cwi": Case(
        _STEP, 0.85, search_step("torchvision:mobilenet_v2", 32, 64, interpolation="average")
    ),
    "search:resnet20:free": Case(_STEP, 0.85, search_step("cifar_resnet:20", 128, 32, residuals="free")),
    "search:resnet20:dense": Case(_STEP, 1.6, search_step("cifar_resnet:20", 128, 32, execution="dense")),
    "search:resnet56:gpu": Case(
        "dense search step / training step, both compiled", 1.2,
        search_step("cifar_resnet:56", 256, 32, execution="dense", device="cuda", compile=True), needs_gpu=True,
    ),
    "memory:resnet20": Case(
        "peak of a search step / training step", 1.0, peak_memory("cifar_resnet:20", 128, 32), needs_linux=True
    ),
    "memory:resnet20:trimmed": Case(
        "the same, freed memory given back", 1.0,
        peak_memory("cifar_resnet:20", 128, 32, MALLOC_MMAP_THRESHOLD_="65536"), needs_linux=True,
    ),
    "scale:resnet20": Case(
        "epoch of two processes / of one, a thread each", 0.588, process_share("cifar_resnet:20", 128, 32)
    ),
    "loader:resnet20": Case("share of a step", 0.05, loader_share("cifar_resnet:20", 128, 32)),
    "trace:resnet50": Case("seconds", 4.0, trace_seconds("torchvision:resnet50", 224)),
    "latency:resnet18": Case("half / full", 0.65, latency("torchvision:resnet18", 32, 64)),
    "start:import": Case("seconds beyond torch", 0.3, import_seconds),
    "start:help": Case("seconds", 1.0, help_seconds),
}  # fmt: skip


def run(name: str, pairs: int) -> Row:
    """Measure one case."""
    import torch

    case = CASES[name]
    if case.needs_gpu and not torch.cuda.is_available():
        return Row(name, case.figure, case.target, skipped="no GPU here")
    if case.needs_linux and not Path("/proc/self/clear_refs").exists():
        return Row(name, case.figure, case.target, skipped="needs Linux")
    values = case.measure(pairs)
    measured = statistics.median(values)
    rounded = [round(value, 3) for value in (measured, min(values), max(values))]
    return Row(name, case.figure, case.target, rounded[0], len(values), rounded[1], rounded[2])


def conditions() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "torchvision")}},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "gpu": gpu,
    }


def show(rows: Sequence[Row]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "figure", "measured", "lowest-highest", "pairs", "target", "")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        value = row.skipped if row.measured is None else f"{row.measured:.2f}"
        spread = "" if row.lowest is None else f"{row.lowest:.2f}-{row.highest:.2f}"
        table.add_row(row.name, row.figure, value, spread, str(row.pairs), f"≤ {row.target}", row.verdict)
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="cases, by name")
    parser.add_argument("--pairs", type=int, default=7, help="measurements per case")
    parser.add_argument("--write", type=Path, metavar="FILE", help="JSON with all numbers")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--epoch-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_of:
        print_peak(*options.peak_of)
        return
    if options.epoch_of:
        print_epoch(*options.epoch_of)
        return
    names = [name for name in CASES if any(fnmatchcase(name, pattern) for pattern in options.only)]
    if options.pairs < 1 or not names:
        parser.error(
            "--pairs must be 1 or more" if names else f"no case is called {' '.join(options.only)}; see --list"
        )
    if options.list:
        print("\n".join(names))
        return
    rows = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows.append(run(name, options.pairs))
    show(rows)
    if options.write:
        found = {**conditions(), "rows": [{**asdict(row), "verdict": row.verdict} for row in rows]}
        options.write.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
