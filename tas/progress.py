"""Progress with the time left, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from tas.distributed import is_main_process

SECONDS_BETWEEN_LINES = 30.0
_IS_SILENT: ContextVar[bool] = ContextVar("is_silent", default=False)


class Bar(Protocol):
    """Told of every step."""

    def advance(self, note: str = "") -> None:
        """One step is done; `note` shows the latest numbers, empty keeps the last."""
        ...


class _Line:
    """Where stderr is a file: a line at most every half minute."""

    def __init__(self, title: str, total: int, done: int):
        self.title, self.total, self.done, self.note = title, total, done, ""
        self.first, self.started, self.printed = done, time.monotonic(), time.monotonic()

    def advance(self, note: str = "") -> None:
        """See `Bar.advance`."""
        self.done, self.note, now = self.done + 1, note or self.note, time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES:
            left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
            text = f"{self.title}: step {self.done}/{self.total}, {left / 60:.0f} min left  {self.note}"
            print(text.rstrip(), file=sys.stderr, flush=True)
            self.printed = now


class _Nothing:
    def advance(self, note: str = "") -> None:
        """See `Bar.advance`."""


@contextmanager
def silenced() -> Iterator[None]:
    """Show no progress for the duration of the block: it is a part of something that shows its own."""
    token = _IS_SILENT.set(True)
    try:
        yield
    finally:
        _IS_SILENT.reset(token)


class _Rich:
    def __init__(self, progress, task):
        self.progress, self.task = progress, task

    def advance(self, note: str = "") -> None:
        """See `Bar.advance`."""
        self.progress.update(self.task, advance=1, **({"note": note} if note else {}))


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress for the duration of the block.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps an earlier, interrupted run has finished.
    """
    if _IS_SILENT.get() or not is_main_process():
        yield _Nothing()
        return
    if not sys.stderr.isatty():
        yield _Line(title, total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Rich(progress, progress.add_task(title, total=total, completed=done, note=""))
