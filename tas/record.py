"""What happened in a run: JSON lines, only ever appended."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tas.distributed import is_main_process
from tas.errors import RunError


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("tas-pruning", "torch", "torchvision", "numpy", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class Record:
    """Rows of a run, kept in memory and, where a path is given, in a file of JSON lines.

    A row is a flat mapping with a `stage` and mostly an `epoch`, or a `part` and a `round`. An interrupted run may have
    written one that it has to do again; the later row counts.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # told of every new row
        if path and path.exists():
            _drop_half_line(path)
            self.rows = _read(path)

    @classmethod
    def read(cls, path: Path) -> Record:
        """The rows of a file that another process may be writing: it is left as it is.

        Raises:
            RunError: a line is not a row.
        """
        record = cls()
        record.rows = _read(path) if path.exists() else []
        return record

    def add(self, stage: str, **values: Any) -> None:
        """Append one row."""
        row = {"stage": stage, **values}
        self.rows.append(row)
        self._append(json.dumps(row) + "\n")
        for listener in self.listeners:
            listener(row)

    def _append(self, text: str) -> None:
        if self.path and is_main_process():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise RunError(
                    f"cannot write {self.path} ({error.strerror}); free some space, then go on with resume"
                ) from error

    def epochs(self, stage: str) -> list[dict[str, Any]]:
        """The rows of a stage that belong to an epoch, in order, one per epoch; of several times, the last."""
        latest: dict[int, dict[str, Any]] = {}
        for row in self.rows:
            if row["stage"] == stage and "epoch" in row:
                latest = {} if row["epoch"] == 0 else latest
                latest[row["epoch"]] = row
        return [latest[epoch] for epoch in sorted(latest)]

    def seconds(self, stage: str) -> float:
        """Time a stage took, interruptions not counted: its epochs, and its parts and rounds, each once."""
        others = [row for row in self.rows if row["stage"] == stage and "epoch" not in row]
        latest = {(row.get("part"), row.get("round")): row for row in others}
        return sum(row.get("seconds", 0.0) for row in [*self.epochs(stage), *latest.values()])


def _drop_half_line(path: Path) -> None:
    """A line cut short by a kill must not swallow the next one."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _read(path: Path) -> list[dict[str, Any]]:
    rows, content = [], path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise RunError(f"{path}, line {number}, is not JSON; move the file away to start anew") from None
        if not isinstance(rows[-1], dict) or "stage" not in rows[-1]:
            raise RunError(f"{path}, line {number}, is not a row of a record; move the file away to start anew")
    return rows
