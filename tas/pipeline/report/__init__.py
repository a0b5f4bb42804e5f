"""Tell people what runs did: a page to open in a browser, and its text in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tas.errors import RunError
from tas.page import Part, write_page
from tas.pipeline.report import sections
from tas.pipeline.report.curves import search_charts, training_charts
from tas.pipeline.report.files import RunFiles, runs_in
from tas.pipeline.report.markdown import result_table, to_markdown
from tas.pipeline.report.pareto import pareto_parts
from tas.pipeline.report.video import FRAMES, KEY, video
from tas.run import PAGE, REPORT
from tas.storage import write_text

__all__ = ["report", "result_table", "runs_in"]


def report(folder: str | Path, *others: str | Path, output: str | Path | None = None) -> Path:
    """Write `report.html` from the files of a run, and its text as `report.md`, and return the page's path.

    The page is one file that opens offline: the result, the architecture after every epoch of the search as a moving
    picture, curves, every size before and after, what was left alone and why, and where it all comes from. A run that
    is not finished is told as far as it is.

    Args:
        folder: of a run; that of a run of several budgets stands for the runs inside.
        others: folders of more runs: one page then lays all of them side by side, and no Markdown is written.
        output: folder of the page; of one run its own folder by default, of several the one that holds the first.

    Raises:
        RunError: a folder holds no run, its files are damaged, or the page cannot be written.
        ArchitectureError: a graph or architecture is damaged.
    """
    folders = [one for place in (folder, *others) for one in runs_in(place)]
    runs = [RunFiles.read(path, label) for path, label in zip(folders, labels(folders), strict=True)]
    home = Path(output) if output is not None else Path(folder) if not others else Path(folder).resolve().parent
    if home.exists() and not home.is_dir():
        raise RunError(f"{home} is a file; give a folder for the report")
    path = home / PAGE
    if len(runs) > 1:
        write_page(path, f"{len(runs)} runs: {', '.join(run.label for run in runs)}", _of_several(runs))
        return path
    write_page(path, sections.result_sentence(runs[0]), _of_one(runs[0]))
    write_text(home / REPORT, to_markdown(runs[0]))  # last: with it, a finished run is complete
    return path


def labels(folders: Sequence[Path]) -> list[str]:
    """Names that tell runs apart: the last parts of their paths, as many as needed."""
    parts = [path.resolve().parts for path in folders]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _of_one(run: RunFiles) -> list[Part]:
    parts: list[Part] = [sections.head(run), sections.result_of(run)]
    parts += _with_title("Architecture", [picture, KEY] if (picture := video(run)) else [])
    parts += _with_title("Search", [search_charts([run])])
    parts += _with_title("Training", [training_charts([run])])
    parts += _with_title("Every size before and after", [sections.sizes_of([run]), sections.dropped_of(run)])
    parts += _with_title("Not searched, and why", [sections.frozen_of(run)])
    return parts + _with_title("Origin", [sections.origin_of(run)])


def _of_several(runs: Sequence[RunFiles]) -> list[Part]:
    parts: list[Part] = [f"<h1>{len(runs)} runs side by side</h1>", sections.results_of(runs)]
    parts += _with_title("Accuracy over cost", pareto_parts(runs))
    pictures = [picture for run in runs if (picture := video(run, limit=max(20, FRAMES // len(runs)), named=True))]
    parts += _with_title("Architectures", [pictures, KEY] if pictures else [])
    parts += _with_title("Search", [search_charts(runs)])
    parts += _with_title("Training", [training_charts(runs)])
    parts += _with_title("Every size before and after", [sections.sizes_of(runs)])
    for title, tell in (("Not searched, and why", sections.frozen_of), ("Origin", sections.origin_of)):
        told = [(run, tell(run)) for run in runs]
        parts += _with_title(title, [f"<h3>{sections.plain(run.label)}</h3>{text}" for run, text in told if text])
    return parts


def _with_title(title: str, parts: list[Part]) -> list[Part]:
    """A section, or nothing where all of its parts are empty."""
    parts = [part for part in parts if part]
    return [f"<h2>{title}</h2>", *parts] if parts else []
