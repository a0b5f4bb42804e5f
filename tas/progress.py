"""Progress with the time left, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Bar:
    """One line of progress; `advance` once per step."""

    def __init__(self, progress=None, task=None):
        self._progress, self._task = progress, task

    def advance(self, note: str = "") -> None:
        """One step is done; `note` shows the latest numbers."""
        if self._progress is not None:
            self._progress.update(self._task, advance=1, note=note)


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show a bar for the duration of the block; silent where stderr is not a terminal.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps an earlier, interrupted run has finished.
    """
    if not sys.stderr.isatty():
        yield Bar()
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
        yield Bar(progress, progress.add_task(title, total=total, completed=done, note=""))
