"""What a search has learned of every candidate, as a value that travels: another budget needs no other search."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.decode import decode
from tas.errors import RunError
from tas.graph import Graph
from tas.run import GRAPH, SCORES, read_as, read_text
from tas.space import SearchSpace


@dataclass(frozen=True)
class Scores:
    """How good a search finds every candidate: enough to choose the sizes under any budget.

    Attributes:
        log_probabilities: one number per candidate, in nats, by width and depth name.
        graph: of the full model.
        space: the candidates.
    """

    log_probabilities: Mapping[str, Sequence[float]]
    graph: Graph
    space: SearchSpace

    def __repr__(self) -> str:
        """How much there is to choose: the numbers themselves are many."""
        return f"Scores of {len(self.space.widths)} widths and {len(self.space.depths)} depths"

    def decode(self, budget: Budget | Amount | Mapping[str, Amount]) -> Architecture:
        """The most probable architecture under a budget, without another search.

        Args:
            budget: as in `tas.search`; a latency needs a graph that knows it.

        Raises:
            BudgetError: no architecture of the space holds it.

        Example:
            smaller = tas.Scores.read("runs/r20").decode("40%")
        """
        return decode(self.log_probabilities, self.graph, self.space, Budget.of(budget))

    def to_dict(self) -> dict[str, Any]:
        """Candidates and scores, for JSON; the graph has a file of its own."""
        candidates = {kind: {name: list(sizes) for name, sizes in choices.items()}
                      for kind, choices in (("widths", self.space.widths), ("depths", self.space.depths))}  # fmt: skip
        return {**candidates, "log_probabilities": {name: list(row) for name, row in self.log_probabilities.items()}}

    @classmethod
    def read(cls, folder: str | Path) -> Scores:
        """The scores that a search has left in a run's folder.

        Raises:
            RunError: there are none, because the search is not over or is of an older version, or a file is damaged.
            ArchitectureError: the graph is damaged.
        """
        folder = Path(folder)
        for name in (GRAPH, SCORES):
            if not (folder / name).is_file():
                raise RunError(
                    f"{folder} has no {name}, which a search writes at its end; finish the run with --resume, or "
                    f"search anew if it is none or one of an older version"
                )
        graph = read_as(folder / GRAPH, Graph.from_json)
        try:
            value = json.loads(read_text(folder / SCORES))
            widths, depths = (
                {name: tuple(sizes) for name, sizes in value[kind].items()} for kind in ("widths", "depths")
            )
            found = cls(value["log_probabilities"], graph, SearchSpace(widths, depths))
            found._require_whole()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{folder / SCORES} is not what a search has written ({type(error).__name__}: {error}); search anew"
            ) from None
        return found

    def _require_whole(self) -> None:
        """Raise `ValueError` where candidates, scores and graph do not belong together."""
        full = {**self.graph.full.widths, **self.graph.full.depths}
        choices = self.space.choices
        if not full.keys() == choices.keys() == self.log_probabilities.keys():
            raise ValueError("its names are not those of the graph")
        for name, sizes in choices.items():
            row = self.log_probabilities[name]
            if len(row) != len(sizes) or not all(math.isfinite(value) for value in row) or sizes[-1] > full[name]:
                raise ValueError(f"{name} does not have a number for each of its candidates")
