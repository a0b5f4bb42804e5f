"""What a comparison has found: every cell, and the mean and standard deviation over its seeds."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tas.budget import bounds_text
from tas.distributed import usable_cores
from tas.errors import RunError
from tas.pipeline.comparison.plan import CompareConfig, Job
from tas.run import read_text

QUANTITIES = (
    "accuracy", "macs", "params", "search_seconds", "search_in_epochs", "search_epochs", "train_epochs",
    "train_seconds",
)  # fmt: skip


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and sample standard deviation (n - 1); None for the latter where there is one value only."""
    return {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else None}


def read_json(path: Path) -> dict[str, Any]:
    """The content of a finished job's file.

    Raises:
        RunError: it is damaged.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); delete it and resume, and it is made anew") from None


def collect(folder: Path, jobs: Sequence[Job]) -> dict[str, Any]:
    """The finished jobs' numbers: of the full model, by seed the seconds of an epoch, and of every cell; and versions.

    A folder that has grown may hold work of several versions of a package: all are named.
    """
    done = [(job, read_json(job.path(folder))) for job in jobs if job.path(folder).is_file()]
    full = next((found for job, found in done if job.kind == "teacher"), None)
    clocks = {str(job.seed): found["seconds"] for job, found in done if job.kind == "clock"}
    cells = []
    for job, found in done:
        if job.kind == "cell":
            assert job.budget is not None
            cell = {"name": job.name, **found, "budget_text": bounds_text(job.budget.amounts)}
            clock = clocks.get(str(job.seed))
            cell["search_in_epochs"] = cell["search_seconds"] / clock if clock else None
            cells.append(cell)
    return {"full": full, "epoch_seconds": clocks, "cells": cells, "versions": _together([found for _, found in done])}


def _together(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    used = [one["versions"] for one in found if "versions" in one]  # what older versions have written has none
    packages = dict.fromkeys(package for versions in used for package in versions)
    return {name: " and ".join(dict.fromkeys(one[name] for one in used if name in one)) for name in packages}


def rows_of(cells: Sequence[dict[str, Any]], config: CompareConfig) -> list[dict[str, Any]]:
    """One row per budget, method and transfer, in the order of the config: mean and deviation over the seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["budget_text"], cell["method"], cell["transfer"]), []).append(cell)
    rows = []
    for budget in (bounds_text(one.amounts) for one in config.budgets):  # type: ignore[union-attr]
        for method in config.rows:
            for transfer in config.transfers:  # type: ignore[union-attr]
                group = groups.get((budget, method.label, transfer), [])
                if group:
                    rows.append({
                        "budget": budget, "method": method.label, "transfer": transfer,
                        "seeds": {str(cell["seed"]): cell["accuracy"] for cell in group},
                        "macs_by_seed": {str(cell["seed"]): cell["macs"] for cell in group},
                        **{name: _over_seeds(group, name) for name in QUANTITIES},
                    })  # fmt: skip
    return rows


def _over_seeds(group: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    values = [cell[name] for cell in group if cell[name] is not None]
    return mean_and_deviation(values) if values else {"mean": None, "deviation": None}


def machine(workers: int, threads: int) -> dict[str, Any]:
    """The kind of machine, without its name: what timings depend on."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.system(), "processor": platform.machine(), "cores": usable_cores(), "workers": workers,
        "threads": threads, "gpus": gpus,
    }  # fmt: skip
