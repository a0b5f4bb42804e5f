"""Compare ways to shrink a model: methods x transfers x budgets x seeds under one recipe."""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.columns import columns
from tas.data import as_source
from tas.errors import ConfigError, RunError, TasError
from tas.fit import require_widths_suffice
from tas.nn.transfer import require_layers
from tas.options import or_default, to_yaml
from tas.pipeline.comparison.methods import Method, read_transfer, with_transfer
from tas.pipeline.comparison.page import write_comparison
from tas.pipeline.comparison.plan import TEACHER, CompareConfig, plan
from tas.pipeline.comparison.pool import do_here, do_in_processes
from tas.pipeline.comparison.results import collect, machine, rows_of
from tas.pipeline.comparison.table import markdown
from tas.pipeline.comparison.watch import watched
from tas.pipeline.comparison.work import Bench, open_bench
from tas.pipeline.compress import require_halves
from tas.profile import metric_name
from tas.run import FULL_WEIGHTS, RunFolder
from tas.show import comparison_rows
from tas.storage import write_text
from tas.task import Loss, Metric, require_fit_for_data, require_fit_for_test
from tas.timing import thread_count

GRID = ("methods", "transfers", "seeds", "budgets")  # entries of the config that may grow
TABLE, PAGE, NUMBERS = "compare.md", "compare.html", "compare.json"


@dataclass(frozen=True)
class CompareResult:
    """What `compare` found.

    Attributes:
        rows: per budget, method and transfer: mean and standard deviation over the seeds, and every seed.
        cells: every network: accuracy, macs, params, seconds, epochs, architecture.
        full: cost and quality of the full model; None if that failed.
        failed: job and error of everything that could not be done.
        summary: the content of compare.json.
        folder: where everything lies; None if nothing was kept.
    """

    rows: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    full: dict[str, Any] | None
    failed: list[dict[str, str]]
    summary: dict[str, Any]
    folder: Path | None

    def __repr__(self) -> str:
        """The rows, mean ± standard deviation over the seeds, what failed, and where everything lies."""
        rows = comparison_rows(self.summary)
        failed = [f"failed: {one['job']}: {one['error']}" for one in self.failed]
        folder = [] if self.folder is None else [f"folder: {self.folder}"]
        return "\n".join([columns(rows, words=len(rows[0]) - 3), *failed, *folder])


def compare(
    model: nn.Module,
    data: Any,
    *,
    config: CompareConfig | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    train_teacher: bool = False,
    loss: Loss | None = None,
    metric: Metric | None = None,
    rebuild: Callable[[], tuple[nn.Module, Any]] | None = None,
    origin: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> CompareResult:
    """Shrink a model in several ways under one recipe, several times each, and say which is best.

    A job that fails is reported, and the others go on. Every finished job is a file, so that the same call with
    `resume` does what is missing and nothing else.

    Args:
        model: the full, trained model; not changed. It is the teacher of every small one.
        data: a `tas.data` source, or a pair of loaders (training, test).
        config: see `CompareConfig`.
        output: folder for the results; None keeps nothing.
        resume: go on with the comparison in that folder. Methods, transfers, seeds and budgets may be added.
        train_teacher: train the full model first, by `config.job.teacher`.
        loss: (outputs, targets) to a scalar, for tasks other than classification.
        metric: (outputs, targets) to a number, the larger the better.
        rebuild: makes model and data anew in worker processes; without it they are sent there. The main module of a
            script that uses workers needs `if __name__ == "__main__":`.
        origin: further entries of config.yaml: where model and data came from.
        command: that started it, for the reports.

    Raises:
        ConfigError: a method, transfer or option does not exist or makes no sense; known before any training, as what
            follows.
        BudgetError: a method cannot hold a budget.
        ModelError: the model cannot be captured, or does not accept the data.
        DataError: the training set cannot be halved, or does not fit.
        RunError: the output folder is in use, or holds another comparison.

    Example:
        config = tas.CompareConfig(methods="tas tas:residuals=free l1", transfers="kd init+kd", seeds=(0, 1, 2))
        result = tas.compare(model, (train_loader, test_loader), config=config, output="runs/comparison")
    """
    config = or_default(config, CompareConfig)
    jobs = plan(config, train_teacher=train_teacher)
    bench = Bench(model, as_source(data), config, Path(), train_teacher, loss, metric)
    _require_possible(bench)
    settings = {**(origin or {}), **config.to_dict()}
    with tempfile.TemporaryDirectory() as temporary:
        run = RunFolder.open(output, to_yaml(settings), resume=resume, results=(), extends=_extends)
        _require_same_teacher(run, train_teacher)
        folder = run.path or Path(temporary)
        bench.folder = folder
        done = {job.file for job in jobs if job.path(folder).is_file()}
        build = rebuild or partial(_same, model, data)
        if rebuild is None and config.workers > 1:  # every worker has a GPU of its own
            build = partial(_same, copy.deepcopy(model).cpu(), data)
        there = partial(
            open_bench, build, config=config, folder=folder, train_teacher=train_teacher, loss=loss, metric=metric
        )
        workers, threads = _crew(config, there)
        with watched(jobs, done) as watch, thread_count(threads if workers == 1 else 0):
            if workers > 1:
                outcomes = do_in_processes(there, jobs, done, watch.report, workers=workers, threads=threads)
            else:
                outcomes = do_here(bench, jobs, done, watch.report)
            watch.until_done(outcomes)
        found = {
            "title": f"{(origin or {}).get('model') or type(model).__name__} on {bench.source.name}",
            "command": command or "tas.compare(…)", "date": time.strftime("%Y-%m-%d"),
            "machine": machine(workers, threads), "config": settings,
            "metric": metric_name(metric), "failed": watch.failed, **collect(folder, jobs),
        }  # fmt: skip
        found["rows"] = rows_of(found["cells"], config)
        if run.path is not None:
            _write(run.path, found)
            if not watch.failed:
                run.drop_checkpoints()
    return CompareResult(found["rows"], found["cells"], found["full"], watch.failed, found, run.path)


def _require_possible(bench: Bench) -> None:
    """Everything that can be known to fail is refused before anything is written."""
    config, source = bench.config, bench.source
    for transfer in config.transfers:  # type: ignore[union-attr]
        train = with_transfer(config.job.train, read_transfer(transfer)[1], 1)
        require_fit_for_data(
            bench.model, source, loss=bench.loss, metric=bench.metric, transfer=train.transfer, layers=train.layers
        )
    require_fit_for_test(bench.model, source, bench.metric)
    require_halves(source)
    for method in config.rows:
        try:
            _require_method(bench, method)
        except TasError as error:
            named = f"method {method.label}" in str(error)
            raise error if named else type(error)(f"method {method.label}: {error}") from None


def _require_method(bench: Bench, method: Method) -> None:
    config, job = bench.config, method.job(bench.config.job, 0)
    require_layers(bench.model, job.train.layers)
    graph, space = bench.choices(job)
    epochs = method.rival(config.rivals, 0).sfp_epochs if method.name == "sfp" else 0
    config.epochs_after(bench.passes(job) if method.is_searched else epochs, method)
    for budget in config.budgets:  # type: ignore[union-attr]
        if method.is_searched or method.name in ("random", "evolution"):
            budget.require_reachable(graph, space)
        else:
            require_widths_suffice(graph, space, budget, f"method {method.label}")
    if method.name == "evolution" and find_spec("optuna") is None:
        raise ConfigError("evolution needs optuna, which is missing; pip install tas-pruning[rivals]")


def _require_same_teacher(run: RunFolder, train_teacher: bool) -> None:
    if run.path is None or not (run.path / TEACHER).is_file():
        return
    was_trained = (run.path / FULL_WEIGHTS).is_file()
    if was_trained != train_teacher:
        raise RunError(
            f"the full model of {run.path} was {'' if was_trained else 'not '}trained by this comparison; resume with "
            f"train_teacher={was_trained}"
        )


def _extends(known: str, given: str) -> bool:
    """Whether a comparison asks for all jobs of the one in the folder under the same settings, and maybe for more."""
    import yaml

    try:
        old, new = yaml.safe_load(known), yaml.safe_load(given)
        before = old["methods"]
        if {name: new["methods"].get(name) for name in before} != before:
            return False
        if any(value not in new[name] for name in ("transfers", "seeds", "budgets") for value in old[name]):
            return False
        return {**old, **{name: new[name] for name in GRID}} == new
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):  # somebody has changed it
        return False


def _same(model: nn.Module, data: Any) -> tuple[nn.Module, Any]:
    return model, data


def _crew(config: CompareConfig, build: Any) -> tuple[int, int]:
    """Workers and threads of each; one worker, this process, where its work cannot be sent elsewhere."""
    workers = max(1, config.workers)
    if workers > 1:
        from multiprocessing.reduction import ForkingPickler

        from torch import multiprocessing  # noqa: F401  it says how tensors are sent

        try:
            ForkingPickler.dumps(build)
        except Exception as error:  # pickling runs the user's code
            warnings.warn(
                f"the model or the data cannot be sent to worker processes ({error}); everything runs in this one. "
                f"Pass rebuild=, a function of a module that makes them",
                stacklevel=3,
            )
            workers = 1
    return workers, config.threads or (1 if workers > 1 else torch.get_num_threads())


def _write(folder: Path, found: dict[str, Any]) -> None:
    write_text(folder / NUMBERS, json.dumps(found, indent=1) + "\n")
    write_text(folder / TABLE, markdown(found))
    write_comparison(folder / PAGE, found)
