"""A run's folder: which files it holds, and who may write there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any, TypeVar

from tas.distributed import from_main, is_main_process
from tas.errors import ArchitectureError, RunError
from tas.record import Record
from tas.storage import is_left_over, is_temporary, write_text

CONFIG, RECORD, GRAPH, SUMMARY = "config.yaml", "record.jsonl", "graph.json", "summary.json"
ARCHITECTURE, WEIGHTS, SCORES = "architecture.json", "model.safetensors", "scores.json"
FULL_WEIGHTS = "teacher.safetensors"  # of the full model, where the run has trained it
REPORT, PAGE = "report.md", "report.html"
TRAINED = "train.yaml"  # config of a training by itself, of the network that is there
SUMMARIES = "summaries.json"  # of a run of several budgets: the summary of each, by the folder inside
STAGES = ("teacher", "search", "train")
MOST_NAMED = 3  # differences of two configs in one message
_NOTHING = "nothing"
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, or of none at all: without a path nothing is written."""

    path: Path | None

    @classmethod
    @from_main
    def open(
        cls,
        path: str | Path | None,
        config: str,
        *,
        resume: bool,
        results: Sequence[str] = (SUMMARY, REPORT),
        extends: Callable[[str, str], bool] = eq,
    ) -> RunFolder:
        """Take a folder for a run.

        Args:
            path: None keeps everything in memory.
            config: YAML text of everything the result depends on.
            resume: go on with an interrupted run of the same config.
            results: the files that a finished run has; without any, every run of the same config can go on.
            extends: of the config in the folder and the given one: whether the given one can go on with what was done
                under the other, and takes its place.

        Raises:
            RunError: the folder is in use, there is nothing to resume, or the config differs.
        """
        if path is None:
            return cls(None)
        folder = Path(path)
        known = folder / CONFIG
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; give a folder for the results")
        if resume:
            if not known.is_file():
                raise RunError(f"{folder} holds no run to resume (it has no {CONFIG}); start it without resume")
            if results and is_finished(folder, results):
                cls(folder).drop_checkpoints()  # it may have been killed just before
                raise RunError(f"{folder} holds a finished run (it has {results[0]}); there is nothing to resume")
            if results and (folder / TRAINED).is_file() and (folder / WEIGHTS).is_file():
                raise RunError(
                    f"the network in {folder} has been trained again by tas train, so that there is nothing to resume; "
                    f"tas measure --run {folder} and tas report {folder} write its results"
                )
            if not extends(before := read_text(known), config):
                raise RunError(
                    f"{known} differs from the options given{_differences(before, config)}; resume with the same "
                    f"options (--config {known}) or choose another folder"
                )
            if before != config:
                write_text(known, config)
        elif folder.exists() and not all(map(is_temporary, _entries(folder))):
            raise RunError(f"{folder} is in use; choose another folder, or resume the run that is there (--resume)")
        else:
            write_text(known, config)
        _drop_halves(folder)
        return cls(folder)

    def file(self, name: str) -> Path | None:
        """Path of one of the run's files."""
        return None if self.path is None else self.path / name

    def checkpoint(self, stage: str) -> Path | None:
        """Path of a stage's checkpoint."""
        return None if self.path is None else self.path / "checkpoints" / f"{stage}.pt"

    def agree_to_train(self, config: str) -> None:
        """Keep the config of a training; where one is to be resumed, it must be the config that is there.

        Raises:
            RunError: the interrupted training had another config.
        """
        if self.path is None:
            return
        file, checkpoint = self.path / TRAINED, self.checkpoint("train")
        if checkpoint and checkpoint.is_file() and file.is_file() and (before := read_text(file)) != config:
            raise RunError(
                f"{file} differs from the options given{_differences(before, config)}; finish the interrupted training "
                f"with the same options, or delete {checkpoint} to start it anew"
            )
        write_text(file, config)

    @from_main
    def record(self) -> Record:
        """The run's record, with the rows of an interrupted start."""
        return Record(self.file(RECORD))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in one step."""
        if self.path is not None:
            write_text(self.path / name, json.dumps(value, indent=1) + "\n")

    def drop_results(self) -> None:
        """Delete what tells of a network whose place another one takes."""
        if self.path is not None and is_main_process():
            for name in (SUMMARY, REPORT, PAGE):
                (self.path / name).unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run."""
        if self.path is not None and is_main_process() and (folder := self.path / "checkpoints").is_dir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def is_finished(folder: Path, results: Sequence[str] = (SUMMARY, REPORT)) -> bool:
    """Whether a run has written all of its results."""
    return all((folder / name).exists() for name in results)


def runs_inside(folder: Path) -> str:
    """Words about the runs in a folder of several budgets; empty where there are none."""
    found = sorted(path.parent for path in folder.glob(f"*/{WEIGHTS}"))
    return f", such as {found[0]}, one of {len(found)} in it" if found else ""


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder} cannot be read ({error.strerror}); choose another folder") from error


def _drop_halves(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left in a run's folder and inside; others may write there."""
    for file in filter(is_left_over, folder.rglob(".*.tmp")):
        file.unlink(missing_ok=True)


def _differences(known: str, given: str) -> str:
    """In which options two configs differ, in words; empty where one of them is no YAML mapping."""
    import yaml

    try:
        before, now = (dict(_entries_of(yaml.safe_load(text), ())) for text in (known, given))
    except (yaml.YAMLError, AttributeError):  # somebody has changed it
        return ""
    names = [name for name in {**before, **now} if before.get(name, _NOTHING) != now.get(name, _NOTHING)]
    words = [f"{name} ({before.get(name, _NOTHING)} there, {now.get(name, _NOTHING)} here)" for name in names]
    more = [f"{len(words) - MOST_NAMED} more"] if len(words) > MOST_NAMED else []
    return f": {', '.join(words[:MOST_NAMED] + more)}" if words else ""


def _entries_of(options: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Options by dotted name, written as on the command line."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _entries_of(value, (*path, str(name)))
        else:
            yield ".".join((*path, str(name))), json.dumps(value)


def read_text(path: Path) -> str:
    """The text of one of a run's files; `RunError` where it is damaged."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); repeat the run in another folder") from None


def read_as(path: Path, parse: Callable[[str], _Value]) -> _Value:
    """What `from_json` makes of one of a run's files; an error names the file."""
    try:
        return parse(read_text(path))
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from None


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        RunError: there is none.
    """
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise RunError(f"{folder} has no {SUMMARY}; give the folder of a finished run, or finish it with --resume")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); repeat the run") from None
    profiles = [found.get(name) for name in ("full", "pruned")] if isinstance(found, dict) else []
    if not profiles or not all(isinstance(one, dict) and "macs" in one and "params" in one for one in profiles):
        raise RunError(f"{path} is not the summary of a run; measure it again with tas measure --run {folder}")
    return {"budget": {}, "seconds": {}, **found}
