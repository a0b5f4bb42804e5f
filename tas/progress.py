"""Progress with the time left, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from tas.distributed import is_main_process

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_REPORTS = 2.0
_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


Report = Callable[[float, str], None]  # share that is done, and what it is of with the latest numbers


class Bar(Protocol):
    """Told of every step."""

    def advance(self, note: str = "", steps: int = 1) -> None:
        """So many steps are done; `note` shows the latest numbers, empty keeps the last."""
        ...


class _Line:
    """Where stderr is a file: a line at most every half minute."""

    def __init__(self, title: str, total: int, done: int):
        self.title, self.total, self.done, self.note = title, total, done, ""
        self.first, self.started, self.printed = done, time.monotonic(), time.monotonic()

    def advance(self, note: str = "", steps: int = 1) -> None:
        """See `Bar.advance`."""
        self.done, self.note, now = self.done + steps, note or self.note, time.monotonic()
        if now - self.printed >= SECONDS_BETWEEN_LINES and self.done > self.first:
            left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
            text = f"{self.title}: step {self.done}/{self.total}, {left / 60:.0f} min left  {self.note}"
            print(text.rstrip(), file=sys.stderr, flush=True)
            self.printed = now


class _Nothing:
    def advance(self, note: str = "", steps: int = 1) -> None:
        """See `Bar.advance`."""


class _Relay:
    """Part of something that shows its own progress, which is told now and then."""

    def __init__(self, title: str, total: int, done: int, report: Report):
        self.title, self.total, self.done, self.note = title, total, done, ""
        self.report, self.reported = report, time.monotonic()

    def advance(self, note: str = "", steps: int = 1) -> None:
        """See `Bar.advance`."""
        self.done, self.note, now = self.done + steps, note or self.note, time.monotonic()
        if now - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.report(self.done / self.total, f"{self.title} {self.note}".rstrip())
            self.reported = now


@contextmanager
def reported(report: Report) -> Iterator[None]:
    """Tell a function of the progress of the block instead of showing it."""
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


class _Rich:
    def __init__(self, progress, task):
        self.progress, self.task = progress, task

    def advance(self, note: str = "", steps: int = 1) -> None:
        """See `Bar.advance`."""
        self.progress.update(self.task, advance=steps, **({"note": note} if note else {}))


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress for the duration of the block.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps an earlier, interrupted run has finished.
    """
    if not is_main_process():
        yield _Nothing()
        return
    if (report := _REPORT.get()) is not None:
        yield _Relay(title, total, done, report)
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
