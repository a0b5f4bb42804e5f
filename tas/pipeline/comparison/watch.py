"""Shows how far a comparison is, and notes what fails, while its jobs are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tas.pipeline.comparison.plan import Job
from tas.pipeline.comparison.pool import Outcome
from tas.progress import Bar, progress_bar


class Watch:
    """What has become of the jobs so far.

    Attributes:
        failed: name and error of every job that could not be done.
    """

    def __init__(self, bar: Bar):
        self.failed: list[dict[str, str]] = []
        self._bar, self._shown = bar, dict[str, int]()

    def report(self, job: Job, share: float, note: str) -> None:
        """A job has done this share of one of its parts; the parts of a search begin at 0 each."""
        shown = self._shown.get(job.file, 0)
        self._shown[job.file] = max(shown, int(share * job.work))
        self._bar.advance(f"{job.title}, {note}", self._shown[job.file] - shown)

    def until_done(self, outcomes: Iterable[Outcome]) -> None:
        """Follow the jobs to the last."""
        for job, error in outcomes:
            if error is not None:
                self.failed.append({"job": job.title, "error": error})
            self._bar.advance(job.title, job.work - self._shown.get(job.file, 0))


@contextmanager
def watched(jobs: Sequence[Job], done: set[str]) -> Iterator[Watch]:
    """Show progress for the duration of the block.

    Args:
        jobs: all of the comparison.
        done: files of those that an earlier, interrupted run has done.
    """
    finished = sum(job.work for job in jobs if job.file in done)
    with progress_bar("compare", sum(job.work for job in jobs), finished) as bar:
        yield Watch(bar)
