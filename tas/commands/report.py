"""The command `tas report`: tell what one or several runs did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tas.errors import ConfigError
from tas.pipeline.report import report as write_report
from tas.pipeline.report import runs_in
from tas.run import SUMMARY, read_summary
from tas.show import print_runs, say

SEEDS: list[str] = []  # options that follow --seed


def report(*, run: list[str] | str, output: str | None = None, json: bool = False) -> None:
    """Write the report of a run, or one page for several runs, and print the results.

    Args:
        run: folder of a run, finished or not; several, as first words or as a list, are laid side by side, and so are
            those inside the folder of a run of several budgets
        output: folder of the report; the run's own by default, of several runs the folder that holds the first
        json: print the summary as JSON; of several runs, the summaries by folder
    """
    folders = [run] if isinstance(run, str) else run
    if not folders:
        raise ConfigError("no run is given; name the folder of one, such as tas report runs/r20")
    path = write_report(*folders, output=output)
    inside = [str(one) for folder in folders for one in runs_in(folder)]
    print_runs({folder: _summary(folder) for folder in inside}, as_json=json)
    if not json:
        say(f"report: {path}")


def _summary(folder: str) -> dict[str, Any] | None:
    """None while the run is not finished."""
    return read_summary(folder) if (Path(folder) / SUMMARY).is_file() else None
