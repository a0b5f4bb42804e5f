"""Time models and layers on this machine, and remember what layers take."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.errors import ConfigError, RunError
from tas.nn.modes import evaluating
from tas.storage import write_text

Clock = Literal["wall", "cpu"]


def _timer(module: nn.Module, inputs: Tensor, clock: Clock) -> Any:
    from torch.utils.benchmark import Timer

    device = inputs.device
    if device.type == "cuda" and clock == "cpu":
        raise ConfigError("clock cpu counts what a processor has spent; on a GPU take wall")

    def now() -> float:
        """When the device is done; torch's own timer waits for the current one, which may be another."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    names = {"module": evaluating(module), "inputs": inputs}
    return Timer(
        "module(inputs)", globals=names, num_threads=torch.get_num_threads(),
        timer=now if clock == "wall" else time.thread_time,
    )  # fmt: skip


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, as far as it can be told to from inside a process.

    glibc gives memory back to the system when more is free than twice the largest block that was ever freed to it, and
    fetches it again, page by page, in the next pass; whether a network crosses that line depends on how its blocks
    happen to lie, and makes it up to twice as slow. One block of nearly the largest size that counts (32 MB) moves the
    line to 64 MB. Elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Another number of torch's threads for a while; 0 leaves it."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def measure_latency(
    models: Sequence[nn.Module],
    example: Tensor,
    *,
    batch: int = 1,
    seconds: float = 1.0,
    rounds: int = 5,
    clock: Clock = "wall",
    undisturbed: bool = False,
) -> list[tuple[float, float]]:
    """Time forward passes of several models in turn (A B A B …), so that a noisy machine disturbs all alike.

    Args:
        models: left in evaluation mode.
        example: one input, batch first.
        batch: samples in a pass.
        seconds: time spent on each model.
        rounds: turns.
        clock: wall, or cpu: the time a CPU has spent on it, which other processes do not lengthen; for one thread.
        undisturbed: count the fastest turn of each model alone, as layers are timed: what disturbs only slows.

    Returns:
        (median, distance of the quartiles) per model, in milliseconds.
    """
    keep_freed_memory()
    timers = []
    for model in models:
        inputs = example[:1].to(next(model.parameters()).device).expand(batch, *example.shape[1:]).contiguous()
        timers.append(_timer(model, inputs, clock))
    turns: list[list[list[float]]] = [[] for _ in models]
    for _ in range(rounds):
        for timed, found in zip(timers, turns, strict=True):
            turn = timed.adaptive_autorange(min_run_time=seconds / rounds / 2, max_run_time=seconds / rounds)
            found.append(turn.times)
    results = []
    for found in turns:
        counted = min(found, key=statistics.median) if undisturbed else list(chain.from_iterable(found))
        low, middle, high = (
            torch.tensor(counted, dtype=torch.double).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
        )
        results.append((round(middle * 1e3, 4), round((high - low) * 1e3, 4)))
    return results


def device_name(device: torch.device) -> str:
    """Name of the processor or graphics card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class LayerTimes:
    """What layers take under one setting, in seconds; kept in a file where a folder is given.

    A layer is known by its class, its numbers and the shape of what it reads, so that equal layers are timed
    once, whatever model they are in.

    Args:
        folder: of the cache; None keeps nothing.
        setting: everything else that times depend on, such as device, threads, type and versions: times of another
            setting are not used.
        runs: makes of a layer and of what it reads the module that is timed; the layer itself by default.
    """

    def __init__(
        self,
        folder: Path | None,
        setting: Mapping[str, Any],
        runs: Callable[[nn.Module, Tensor], nn.Module] = lambda layer, _: layer,
    ):
        self.setting, self.runs = dict(setting), runs
        digest = hashlib.sha256(json.dumps(self.setting, sort_keys=True).encode()).hexdigest()[:16]
        self.path = None if folder is None else Path(folder).expanduser() / f"latency-{digest}.json"
        self.seconds: dict[str, float] = self._kept()

    def _kept(self) -> dict[str, float]:
        """What the file holds; a damaged one, or one of another setting, counts as none."""
        try:
            value = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
            known = dict(value["layers"]) if value.get("setting") == self.setting else {}
            return {name: float(seconds) for name, seconds in known.items() if seconds > 0}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def measure(
        self, wanted: Mapping[str, tuple[nn.Module, tuple[int, ...]]], *, device: torch.device, seconds: float,
        rounds: int = 3, clock: Clock = "wall", advance: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Time what is not known yet, in turns; of the rounds' medians the least counts: what disturbs only slows.

        Args:
            wanted: by signature, the layer, on the meta device, and the shape of its input.
            device: where it is timed.
            seconds: time spent on each.
            rounds: turns.
            clock: as in `measure_latency`.
            advance: called after every turn of one layer.
        """
        missing = {name: item for name, item in wanted.items() if name not in self.seconds}
        keep_freed_memory()
        found: dict[str, list[float]] = {name: [] for name in missing}
        for _ in range(rounds):
            for name, (layer, shape) in missing.items():
                found[name].append(self._time(layer, shape, seconds / rounds, device, clock))
                advance()
        if missing:
            self.seconds = {**self._kept(), **self.seconds, **{name: min(times) for name, times in found.items()}}
            self._keep()

    @torch.no_grad()
    def _time(
        self, layer: nn.Module, shape: tuple[int, ...], seconds: float, device: torch.device, clock: Clock
    ) -> float:
        layer = evaluating(copy.deepcopy(layer).to_empty(device=device))
        tensors = [*layer.parameters(), *layer.buffers()]
        for tensor in tensors:
            tensor.fill_(1)  # what lies in empty memory may be slow to compute with
        inputs = torch.full(shape, 0.5, dtype=next(t.dtype for t in tensors if t.is_floating_point()), device=device)
        return _timer(self.runs(layer, inputs), inputs, clock).blocked_autorange(min_run_time=seconds).median

    def _keep(self) -> None:
        """Write what is known; where that cannot be, this run needs nothing of it."""
        if self.path is None:
            return
        try:
            write_text(self.path, json.dumps({"setting": self.setting, "layers": self.seconds}, indent=1))
        except RunError as error:
            warnings.warn(
                f"the next run will time all layers again: {error}, or keep none (latency.cache '')", stacklevel=2
            )


def signature(layer: nn.Module, shape: tuple[int, ...]) -> str:
    """Everything the time of a layer depends on besides the machine."""
    return f"{type(layer).__module__}.{layer!r} {'x'.join(map(str, shape))}"
