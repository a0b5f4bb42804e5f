"""Do the jobs of a comparison, in this process or in several, each as soon as what it needs is there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from tas.errors import TasError
from tas.pipeline.comparison.plan import Job
from tas.pipeline.comparison.work import Bench, do
from tas.progress import reported

Outcome = tuple[Job, str | None]  # a job and its error
Report = Callable[[Job, float, str], None]  # a job, the share of a part of it that is done, and which part


class Queue:
    """Jobs that wait, in order, and what became of the others.

    Args:
        jobs: in the order in which to do them.
        done: files of jobs that are done already.
    """

    def __init__(self, jobs: Sequence[Job], done: set[str]):
        self.waiting = [job for job in jobs if job.file not in done]
        self.done, self.failed = set(done), set[str]()

    def take(self) -> Job | None:
        """The first job that has what it needs."""
        job = next((job for job in self.waiting if self.done.issuperset(job.needs)), None)
        if job is not None:
            self.waiting.remove(job)
        return job

    def end(self, job: Job, error: str | None) -> list[Outcome]:
        """Note what became of a job; gives it and all jobs that cannot be done any more."""
        if error is None:
            self.done.add(job.file)
            return [(job, None)]
        self.failed.add(job.file)
        lost = [other for other in self.waiting if self.failed.intersection(other.needs)]
        self.waiting = [other for other in self.waiting if other not in lost]
        found: list[Outcome] = [(job, error)]
        for other in lost:
            found += self.end(other, f"not done, for {job.title} failed")
        return found


def do_here(bench: Bench, jobs: Sequence[Job], done: set[str], report: Report) -> Iterator[Outcome]:
    """Do the jobs one after the other in this process."""
    queue = Queue(jobs, done)
    while (job := queue.take()) is not None:
        with reported(partial(report, job)):
            error = _attempt(bench, job)
        yield from queue.end(job, error)


def _attempt(bench: Bench, job: Job) -> str | None:
    """Do one job; its error in words, for the others go on."""
    try:
        do(bench, job)
    except TasError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other cells do not depend on it
        traceback.print_exc(file=sys.stderr)
        return f"{type(error).__name__}: {error}".strip()
    return None


@dataclass
class _Worker:
    process: Any
    connection: Any
    job: Job | None = None


def do_in_processes(
    build: Callable[[], Bench], jobs: Sequence[Job], done: set[str], report: Report, *, workers: int, threads: int
) -> Iterator[Outcome]:
    """Do the jobs in worker processes.

    Args:
        build: makes a worker's bench; it is sent to a new interpreter, so it must be picklable.
        jobs: in the order in which to do them.
        done: files of jobs that are done already.
        report: told how far they are.
        workers: processes, at least 1.
        threads: of each.
    """
    queue, gpus = Queue(jobs, done), visible_gpus()
    count = min(workers, len(queue.waiting))
    crew = [_hire(build, threads, gpus[index % len(gpus)] if gpus else None) for index in range(count)]
    try:
        while True:
            for index, worker in enumerate(crew):
                if worker.job is None and (job := queue.take()) is not None:
                    if not worker.process.is_alive():
                        gpu = gpus[index % len(gpus)] if gpus else None
                        crew[index] = worker = _hire(build, threads, gpu)
                    worker.job = job
                    with suppress(OSError):  # if it is gone, so is the answer
                        worker.connection.send(job)
            busy = {worker.connection: worker for worker in crew if worker.job is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job, answer = worker.job, _answer(worker)
                assert job is not None
                if isinstance(answer, _Progress):
                    report(job, answer.share, answer.note)
                    continue
                worker.job = None
                yield from queue.end(job, answer)
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.process.join()


class _Progress(NamedTuple):
    """What a worker says while it is at a job; its last word is the error, or None."""

    share: float
    note: str


def _answer(worker: _Worker) -> _Progress | str | None:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionError):  # the second where it never read its job
        worker.process.join()
        return (
            f"its process ended with code {worker.process.exitcode} (-9: no memory left, or killed; 1 at once: the "
            f'script may lack `if __name__ == "__main__":`)'
        )


def _hire(build: Callable[[], Bench], threads: int, gpu: str | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    variables = {"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})}
    process = context.Process(target=_work, args=(there, build, threads), name="tas-worker")
    with _environment(variables):  # read when the new interpreter imports torch
        process.start()
    there.close()
    return _Worker(process, here)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _work(connection: Any, build: Callable[[], Bench], threads: int) -> None:
    """A worker: one job after the other, until there are no more or the other end is gone."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr  # what the user's code prints is no result
    bench = None
    with reported(lambda share, note: connection.send(_Progress(share, note))):
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            try:
                bench = bench or build()
            except Exception as error:  # the job fails with it, this one and every other
                connection.send(f"{type(error).__name__}: {error}")
                continue
            connection.send(_attempt(bench, job))


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given[:count] if given else [str(index) for index in range(count)]
