"""The rows of a run, sent to TensorBoard and whatever else accelerate can write to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tas.distributed import is_main_process, join
from tas.errors import ConfigError
from tas.options import near_misses
from tas.record import Record


@contextmanager
def tracked(
    record: Record, tracker: str | None, *, folder: str | Path | None, settings: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """While open, every new row of a record also goes to a tracker: its numbers, each under `stage/name`.

    The step is the row's place in the record, since trackers may drop what goes back (wandb); the epoch stands beside.

    Args:
        record: of the run.
        tracker: as accelerate names it: tensorboard, wandb, mlflow, trackio, …; several between commas; `all` takes
            what is installed; None changes nothing.
        folder: where trackers that write files put them, in a folder `tas`; None is the current one.
        settings: of the run, shown as its hyper-parameters.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    if tracker is None or not is_main_process():
        yield
        return
    require_tracker(tracker)
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=join().type == "cpu", log_with=list[Any](_names(tracker)), project_dir=str(folder or ".")
    )
    accelerator.init_trackers("tas", config=numbers({"settings": settings or {}}, text=True))

    def send(row: Mapping[str, Any]) -> None:
        """One row of the record."""
        kind = "/".join(str(row[name]) for name in ("stage", "part") if name in row)
        values = {name: value for name, value in row.items() if name not in ("stage", "part")}
        accelerator.log(numbers({kind: values}), step=len(record.rows) - 1)

    record.listeners.append(send)
    try:
        yield
    finally:
        record.listeners.remove(send)
        accelerator.end_training()


def require_tracker(tracker: str | None) -> None:
    """Check that there are such trackers, before anything is written.

    Raises:
        ConfigError: accelerate knows none of this name, or its package is not installed.
    """
    if tracker is None:
        return
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = {kind.value for kind in LoggerType}
    there = {str(getattr(kind, "value", kind)) for kind in get_available_trackers()} | {"all"}
    for name in _names(tracker):
        if name not in known:
            raise ConfigError(
                f"tracker {name!r} is not one that accelerate knows{near_misses(name, known)}; it can be "
                f"{', '.join(sorted(known))}"
            )
        if name not in there or there == {"all"}:
            raise ConfigError(f"tracker {name}: its package is not installed; install it, or leave it out")


def _names(tracker: str) -> list[str]:
    return [name.strip() for name in tracker.split(",") if name.strip()]


def numbers(nest: Mapping[str, Any], *, text: bool = False) -> dict[str, Any]:
    """The numbers of a nest of mappings by their paths, `search/widths/conv1`; with `text` all else as text, too."""
    found: dict[str, Any] = {}
    for name, value in nest.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{path}": inner for path, inner in numbers(value, text=text).items()}
        elif isinstance(value, int | float):
            found[name] = value
        elif text:
            found[name] = str(value)
    return found
