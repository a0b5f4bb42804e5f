"""A run's folder: which files it holds, and who may write there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tas.errors import RunError
from tas.record import Record
from tas.storage import write_text

CONFIG, RECORD, GRAPH, SUMMARY, REPORT = "config.yaml", "record.jsonl", "graph.json", "summary.json", "report.md"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, or of none at all: without a path nothing is written."""

    path: Path | None

    @classmethod
    def open(cls, path: str | Path | None, config: str, *, resume: bool, result: str = SUMMARY) -> RunFolder:
        """Take a folder for a run.

        Args:
            path: None keeps everything in memory.
            config: YAML text of everything the result depends on.
            resume: go on with an interrupted run of the same config.
            result: the file that a finished run has.

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
            if (folder / result).exists():
                raise RunError(f"{folder} holds a finished run (it has {result}); there is nothing to resume")
            if known.read_text(encoding="utf-8") != config:
                raise RunError(
                    f"{known} differs from the options given; resume with the same options (--config {known}) or "
                    f"choose another folder"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise RunError(f"{folder} is in use; choose another folder, or resume the run that is there (--resume)")
        else:
            write_text(known, config)
        return cls(folder)

    def file(self, name: str) -> Path | None:
        """Path of one of the run's files."""
        return None if self.path is None else self.path / name

    def checkpoint(self, stage: str) -> Path | None:
        """Path of a stage's checkpoint."""
        return None if self.path is None else self.path / "checkpoints" / f"{stage}.pt"

    def record(self) -> Record:
        """The run's record, with the rows of an interrupted start."""
        return Record(self.file(RECORD))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in one step."""
        if self.path is not None:
            write_text(self.path / name, json.dumps(value, indent=1) + "\n")

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run."""
        if self.path is not None and (folder := self.path / "checkpoints").is_dir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        RunError: there is none.
    """
    path = Path(folder) / SUMMARY
    if not path.is_file():
        raise RunError(f"{folder} has no {SUMMARY}; give the folder of a finished run, or finish it with --resume")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); repeat the run") from None
