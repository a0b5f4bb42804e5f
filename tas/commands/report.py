"""The command `tas report`: write a report."""

from __future__ import annotations

import json as json_module

from tas.pipeline.report import report as write_report
from tas.run import read_summary
from tas.show import print_profiles

SEEDS: list[str] = []  # options that follow --seed


def report(*, run: str, json: bool = False) -> None:
    """Write the report of a run and print its result.

    Args:
        run: folder of a finished run
        json: print the summary as JSON
    """
    path = write_report(run)
    summary = read_summary(run)
    if json:
        print(json_module.dumps(summary))
    else:
        print_profiles({name: summary[name] for name in ("full", "pruned")})
        print(f"report: {path}")
