"""The rows of a run, sent to TensorBoard and whatever else accelerate can write to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tas.distributed import is_main_process, join
from tas.errors import ConfigError
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
    from accelerate import Accelerator

    names = [name.strip() for name in tracker.split(",") if name.strip()]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no supported trackers are currently installed")  # raised below
            accelerator = Accelerator(
                cpu=join().type == "cpu", log_with=list[Any](names), project_dir=str(folder or ".")
            )
    except ValueError as error:
        raise ConfigError(f"tracker {tracker!r} is not one that accelerate knows: {error}") from None
    accelerator.init_trackers("tas", config=numbers({"settings": settings or {}}, text=True))
    missing = set(names) - {opened.name for opened in accelerator.trackers} - {"all"}
    if missing or not accelerator.trackers:
        accelerator.end_training()
        raise ConfigError(
            f"tracker {tracker}: {', '.join(sorted(missing or names))} is not installed; install it, or leave it out"
        )

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
