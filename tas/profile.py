"""What one model costs and how good it is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Runtime = Literal["pytorch", "onnxruntime"]
RUNTIMES: dict[str, str] = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of one forward pass.

    Attributes:
        batch_size: samples in the pass.
        latency_ms: median, in milliseconds.
        latency_spread_ms: distance between the quartiles.
    """

    batch_size: int
    latency_ms: float
    latency_spread_ms: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measured facts of one model.

    Attributes:
        macs: multiply-adds per sample of convolutions, linear layers and attention products.
        params: number of parameters.
        accuracy: percent of the test set, or the mean of the user's metric; None when no data was given.
        latency_ms: median time of one forward pass, in milliseconds.
        latency_spread_ms: distance between the quartiles of that time.
        batch_size: samples in the timed forward pass.
        metric: name of the user's metric; empty for the percentage of right classes.
        predicted_latency_ms: what a budget of latency was held by; None where there was none.
        runtime: what ran the timed passes, PyTorch or ONNX Runtime.
        device: name of the processor or graphics card they ran on.
        threads: of a pass on a CPU; 0 on a graphics card.
        clock: wall, or cpu: the time a CPU has spent, where a budget of latency counts it.
        timings: of every batch size, where several were timed; the first is the one above.
    """

    macs: int
    params: int
    accuracy: float | None
    latency_ms: float
    latency_spread_ms: float
    batch_size: int = 1
    metric: str = ""
    predicted_latency_ms: float | None = None
    runtime: Runtime = "pytorch"
    device: str = ""
    threads: int = 0
    clock: Literal["wall", "cpu"] = "wall"
    timings: tuple[Timing, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; without a metric, a prediction or further batch sizes where there are none."""
        left_out = {name for name in ("metric", "predicted_latency_ms", "timings") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def metric_name(metric: Callable[..., Any] | None) -> str:
    """What a user's metric, a function or an object that is called, is named; empty for None."""
    if metric is None:
        return ""
    name = getattr(getattr(metric, "func", metric), "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else name


def quality_words(metric: str) -> tuple[str, str, str]:
    """What an accuracy is called where the user's metric has this name, and formats of a value and a difference."""
    return (metric, "{:.4g}", "{:+.4g}") if metric else ("accuracy", "{:.2f} %", "{:+.2f} points")


def compared(*profiles: Mapping[str, Any]) -> Iterator[tuple[str, list[str], str]]:
    """What was measured of one or two models, full then pruned, as text: field, its values, and how they differ.

    Fields that one of them lacks are left out; of a single model the difference is empty.
    """
    _, value, difference = quality_words(profiles[0].get("metric", ""))
    forms = {"accuracy": value, "macs": "{:,}", "params": "{:,}"}
    for name, form in {**forms, "predicted_latency_ms": "{:.3f} ms", "latency_ms": "{:.3f} ms"}.items():
        values: list[Any] = [profile.get(name) for profile in profiles]
        if None in values:
            continue
        change = ""
        if len(values) == 2 and name == "latency_ms":
            change = latency_change(*profiles)
        elif len(values) == 2:
            change = difference.format(values[1] - values[0]) if name == "accuracy" else share(*values)
        yield name, [form.format(one) for one in values], change


def share(before: float, after: float) -> str:
    """What is left, in percent; a dash of nothing."""
    return f"{100 * after / before:.1f} %" if before else "-"


def plus_minus(value: Mapping[str, float | None], digits: int) -> str:
    """Mean ± standard deviation; the mean alone where there is no other, a dash without a mean."""
    mean, deviation = value["mean"], value["deviation"]
    if mean is None:
        return "-"
    return f"{mean:,.{digits}f}" + (f" ± {deviation:,.{digits}f}" if deviation is not None else "")


def latency_setting(profile: Mapping[str, Any]) -> str:
    """Under what a latency was measured: `ONNX Runtime, 2 threads, name of the processor`; empty if not known.

    Another clock than the wall's comes behind.
    """
    if not profile.get("device"):
        return ""
    threads = profile.get("threads", 0)
    count = [f"{threads} thread{'s' if threads > 1 else ''}"] if threads else []
    clock = ["time spent by the processor"] if profile.get("clock") == "cpu" else []
    return ", ".join([RUNTIMES[profile["runtime"]], *count, profile["device"], *clock])


def latency_change(full: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    """The pruned model's measured latency as a share of the full one's, in words where there is no gain.

    There is none where they differ by no more than the larger of both spreads.
    """
    before, after = full["latency_ms"], pruned["latency_ms"]
    spread = max(profile.get("latency_spread_ms") or 0.0 for profile in (full, pruned))
    left = share(before, after)
    return left if abs(before - after) > spread else f"no gain: {left}, within the spread of {spread:.3f} ms"
