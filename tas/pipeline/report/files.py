"""What lies in a run's folder, finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tas.architecture import Architecture
from tas.budget import Budget, Budgets
from tas.errors import BudgetError, RunError
from tas.graph import Graph
from tas.record import Record
from tas.run import ARCHITECTURE, CONFIG, GRAPH, RECORD, STAGES, SUMMARY, WEIGHTS, read_as, read_summary, read_text


@dataclass(frozen=True)
class RunFiles:
    """What a run has written so far.

    Attributes:
        folder: where it lies.
        label: what tells it from the other runs of a page.
        summary: the results; None while the run is not finished.
        graph: of the full model; None where the run kept none.
        chosen: the architecture found; None before the end of the search.
        record: one row per epoch of every stage.
        config: YAML text of the options; empty where there is none.
    """

    folder: Path
    label: str
    summary: Mapping[str, Any] | None
    graph: Graph | None
    chosen: Architecture | None
    record: Record
    config: str

    @classmethod
    def read(cls, folder: Path, label: str | None = None) -> RunFiles:
        """Read a run without changing anything in its folder.

        Raises:
            RunError: there is no run, or its files are damaged.
            ArchitectureError: its graph or architecture is damaged.
        """
        known = {name: folder / name for name in (CONFIG, RECORD, SUMMARY, GRAPH, ARCHITECTURE)}
        found = {name for name, path in known.items() if path.is_file()}
        if not found & {CONFIG, RECORD, SUMMARY}:
            raise RunError(
                f"{folder} holds no run (it has no {CONFIG}, {RECORD} or {SUMMARY}); give the output folder of a run"
            )
        graph = read_as(known[GRAPH], Graph.from_json) if GRAPH in found else None
        chosen = read_as(known[ARCHITECTURE], Architecture.from_json) if ARCHITECTURE in found and graph else None
        return cls(
            folder,
            label or folder.resolve().name,
            read_summary(folder) if SUMMARY in found else None,
            graph,
            graph.check(chosen) if graph and chosen else None,
            Record.read(known[RECORD]),
            read_text(known[CONFIG]) if CONFIG in found else "",
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The options as a mapping; empty where they cannot be understood."""
        import yaml

        try:
            value = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}  # shown as text all the same
        return value if isinstance(value, dict) else {}

    @property
    def budget(self) -> dict[str, Any]:
        """The bounds as given, by quantity; empty where the run had none."""
        if self.summary:
            return self.summary["budget"]
        try:
            return Budget(**self.settings["budget"]).amounts
        except (KeyError, TypeError, BudgetError):
            return {}

    @property
    def held(self) -> str:
        """Whether a finished run holds its bounds, in words; empty where that cannot be told."""
        if self.summary is None or self.graph is None or self.chosen is None or not self.budget:
            return ""
        budget = Budget(**self.budget)
        if budget.latency is not None and self.graph.latency is None:
            return ""
        return "; held" if budget.holds(self.graph, self.chosen) else "; not held by this architecture"

    @property
    def parts(self) -> list[Path]:
        """Folders of the runs inside, begun so far; empty but for a run of several budgets."""
        try:
            budgets = Budgets(**self.settings["budget"]).each
        except (KeyError, TypeError, BudgetError):
            return []
        places = [self.folder / budget.name for budget in budgets] if len(budgets) > 1 else []
        return [place for place in places if (place / CONFIG).is_file()]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The rows of the search that hold an architecture: one per epoch, then one per round, numbered on."""
        rows = [row for row in self.record.epochs("search") if "architecture" in row]
        return rows + [{**row, "epoch": len(rows) + place} for place, row in enumerate(self.rounds)]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The rows of successive halving, one per round; of one that was done twice, the later."""
        rows = {row["round"]: row for row in self.record.rows if row.get("part") == "halving"}
        return [rows[number] for number in sorted(rows)]

    def architecture_of(self, row: Mapping[str, Any]) -> Architecture:
        """The most probable architecture after an epoch of the search; whatever the budget.

        Raises:
            ArchitectureError: it does not belong to the run's graph.
        """
        found = Architecture(**row["architecture"])
        return self.graph.check(found) if self.graph else found

    @property
    def latest(self) -> Architecture | None:
        """What was chosen, or else the most probable architecture so far."""
        return self.chosen or (self.architecture_of(self.epochs[-1]) if self.epochs else None)

    @property
    def state(self) -> str:
        """Whether the run is finished, in words, and if not, how far it is; that of `tas train` has no result."""
        if self.summary:
            return "finished"
        is_training = self.graph is None and (self.folder / WEIGHTS).is_file()
        return f"{'trained alone' if is_training else 'not finished'}: {self.progress}"

    @property
    def progress(self) -> str:
        """How many epochs of each stage are done, in words."""
        parts = []
        for stage in STAGES:
            done, options = len(self.record.epochs(stage)), self.settings.get(stage)
            planned = options.get("epochs") if isinstance(options, dict) else None
            if done:
                finished = min(done, planned) if planned else done  # the last may be a part of one
                parts.append(f"{stage} {finished} of {planned} epochs" if planned else f"{stage} {done} epochs")
        return ", ".join(parts) or "no epoch yet"

    @property
    def start(self) -> Mapping[str, Any]:
        """Seed and versions, from the summary or from the record's first row."""
        first = next((row for row in self.record.rows if row["stage"] == "start"), {})
        return self.summary or {"seed": self.settings.get("seed"), **first}

    @property
    def weights_bytes(self) -> tuple[int, int] | None:
        """Size of a file of the full model's weights and of the pruned model's; None without a file.

        The second is the file's own; the first is what the same format takes for the full shapes.
        """
        path = self.folder / WEIGHTS
        if self.graph is None or self.chosen is None or not path.is_file():
            return None
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")  # safetensors: length of the header, header, tensors
        size = path.stat().st_size
        full, small = (_elements(self.graph, architecture) for architecture in (self.graph.full, self.chosen))
        return header + round((size - header) * full / max(1, small)), size


def runs_in(folder: str | Path) -> list[Path]:
    """The run of a folder, or those inside where it is a run of several budgets.

    Raises:
        RunError: there is no run, or its files are damaged.
        ArchitectureError: its graph or architecture is damaged.
    """
    folder = Path(folder)
    return RunFiles.read(folder).parts or [folder]


def _elements(graph: Graph, architecture: Architecture) -> int:
    """Numbers in all parameters and buffers; projections of free residuals are parameters of the graph's cost."""
    dropped = {(depth.name, place) for depth in graph.depths for place in range(len(depth.blocks))
               if place >= architecture.depths[depth.name]}  # fmt: skip
    sizes = graph.sizes(architecture)
    return graph.params(architecture) + sum(
        prod(count.of(sizes) for count in parameter.counts)
        for layer in graph.layers
        if layer.gate not in dropped
        for parameter in layer.parameters
        if parameter.is_buffer
    )
