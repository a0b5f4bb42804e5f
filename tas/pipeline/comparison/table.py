"""The table of a comparison, as Markdown and as cells that other pages show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tas.profile import plus_minus

Found = Mapping[str, Any]  # the content of compare.json


def table_head(found: Found) -> list[str]:
    """The names of the columns."""
    metric = found["metric"]
    return [
        "budget", "method", "transfer", metric or "accuracy %", "MACs", "of full", "params", "search s",
        "in full-model epochs", "epochs: search + training", f"{metric or 'accuracy'} of every seed",
    ]  # fmt: skip


def table_rows(found: Found) -> list[list[str]]:
    """The cells of the table as text, one list per row."""
    full, rows = found["full"], []
    if full is not None:
        rows.append([
            "-", "full model", "-", f"{full['accuracy']:.2f}", f"{full['macs']:,}", "100.0 %", f"{full['params']:,}",
            "-", "-", f"0 + {full['epochs']}" if full["epochs"] else "given", "-",
        ])  # fmt: skip
    for row in found["rows"]:
        share = "-" if full is None else f"{100 * row['macs']['mean'] / full['macs']:.1f} %"
        searched, trained = row["search_epochs"]["mean"], row["train_epochs"]["mean"]
        rows.append([
            row["budget"], row["method"], row["transfer"], plus_minus(row["accuracy"], 2), plus_minus(row["macs"], 0),
            share, plus_minus(row["params"], 0), plus_minus(row["search_seconds"], 1),
            plus_minus(row["search_in_epochs"], 2), f"{searched:.4g} + {trained:.4g}",
            _seeds(row["seeds"], found["config"]["seeds"]),
        ])  # fmt: skip
    return rows


def _seeds(values: Mapping[str, float], seeds: Sequence[int]) -> str:
    """The quality of every seed; by name where some failed."""
    if len(values) == len(seeds):
        return ", ".join(f"{value:.2f}" for value in values.values())
    return ", ".join(f"seed {seed}: {value:.2f}" for seed, value in values.items())


def notes(found: Found) -> list[str]:
    """What one has to know to read the numbers."""
    config, full = found["config"], found["full"]
    seeds = config["seeds"]
    means = "With a single seed there is no spread"
    if len(seeds) > 1:
        means = f"Mean ± standard deviation (n - 1) over the seeds {', '.join(map(str, seeds))}"
    origin = "the model as given, with its weights"
    if full is not None and full["epochs"]:
        origin = f"the full model, trained for {full['epochs']} epochs first ({full['seconds']:.0f} s)"
    lines = [
        f"{found['metric'] or 'Accuracy'} is measured on the test set once, at the end of each training; nothing is "
        f"chosen by it. {means}; a seed is one search and one training.",
        f"The teacher of all methods is {origin}. One architecture is chosen per method, budget and seed, and shared "
        f"by its transfers; all are trained by one recipe, and every network holds its budget.",
        _epochs(config),
        "Transfers: none is fresh weights and labels only; init starts from weights of the trained model; kd, dkd, "
        "dist, hints and attention learn from the teacher; init+ one of them does both. They are about the training: a "
        "search of ours asks the teacher whatever the transfer (search.teacher_weight).",
        _cost(found),
    ]
    lines += _options(config["methods"])
    return lines


def _epochs(config: Mapping[str, Any]) -> str:
    train = config["train"]["epochs"]
    if not config["count_search"]:
        return f"Every method trains for {train} epochs, whatever its search has taken (count_search is off)."
    return (
        f"Every method passes over the training images {train} times in search and training together (count_search). "
        f"Counted is what a search of ours has read, to a hundredth of a pass, and the training of sfp; an image "
        f"without gradients counts as a third, since one product of three is computed. What random, evolution and "
        f"taylor read is not counted, in their favour."
    )


def _cost(found: Found) -> str:
    times = found["epoch_seconds"].values()
    bounds = [f"{time:.2f}" for time in sorted({min(times), max(times)})] if times else []
    measured = f"; here {' to '.join(bounds)} s" if bounds else ""
    return (
        "The cost of a search is in seconds, and in training epochs of the full model: the median of 20 training steps "
        f"against the labels, times the steps of an epoch, timed once per seed in a process of the same kind{measured}."
        " Processes that work side by side slow each other down."
    )


def _options(methods: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, method in methods.items():
        words = ", ".join(f"{name} = {value}" for name, value in method["options"].items())
        if words or label != method["method"]:
            lines.append(f"{label}: {method['method']}" + (f" with {words}." if words else "."))
    return lines


def origin(found: Found) -> list[str]:
    """Command, date, machine and versions."""
    machine = found["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ", no GPU"
    return [
        f"Command: `{found['command']}`",
        f"Date: {found['date']}. Machine: {machine['system']} {machine['processor']}, {machine['cores']} cores{gpus}; "
        f"{_counted(machine['workers'], 'worker')} with {_counted(machine['threads'], 'thread')} each.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in found['versions'].items())}.",
    ]


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def headline(found: Found) -> str:
    """One sentence: how much was compared."""
    config = found["config"]
    counts = [len(config["methods"]), len(config["transfers"]), len(config["budgets"]), len(config["seeds"])]
    words = list(map(_counted, counts, ("method", "transfer", "budget", "seed")))
    failed = f"; {failures(found['failed'])}" if found["failed"] else ""
    return f"{words[0]} x {words[1]} x {words[2]} x {words[3]}, {len(found['cells'])} networks trained{failed}"


def failures(failed: Sequence[object]) -> str:
    """How many jobs failed."""
    return f"{_counted(len(failed), 'job')} failed"


def markdown(found: Found) -> str:
    """`compare.md`."""
    parts = [f"# Comparison: {found['title']}", f"{headline(found)}.", _table(table_head(found), table_rows(found))]
    if found["failed"]:
        parts += ["## Failed", _table(("job", "error"), [[one["job"], one["error"]] for one in found["failed"]])]
    parts += ["## How to read it", "\n".join(f"* {line}" for line in notes(found))]
    config = json.dumps(found["config"], indent=1)
    parts += ["## Origin", "\n\n".join(origin(found)), f"```json\n{config}\n```"]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
