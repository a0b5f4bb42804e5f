"""How a search runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tas.errors import ConfigError
from tas.options import check_options
from tas.space import SearchSpace

# Adam moves a logit by about its learning rate a step; 12 takes it from even odds to certainty, with room to turn back
LOGITS_TRAVEL = 12.0
FIRST_CUT = 4  # one in so many architectures outlives the first round
FIRST_STEPS = 0.5  # share of the steps in the first round, which leads the weights to the budget
MOST_IMAGES = 8  # times as many as in the first round judge those of a later one, at most
# Options that are read only where weights and logits step in turn
ALTERNATION = frozenset({
    "fragments", "depth_samples", "interpolation", "logits_learning_rate", "logits_weight_decay", "logits_betas",
    "cost_weight", "tolerance", "band", "temperature_start", "temperature_end", "temperature_schedule", "compile",
})  # fmt: skip


class Planned(NamedTuple):
    """A round of successive halving: after how many steps it ends, the images that judge, and how many stay."""

    steps: int
    images: int
    stay: int


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a search runs. The defaults are the paper's for CIFAR (Dong and Yang, 2019, sections 3 and 4.1).

    Attributes:
        epochs: passes over the halves of the training set in which weights and logits step in turn; with 0, saliency
            and successive halving alone decide.
        batch_size: samples of each half a step.
        start: scratch resets the weights first, as the paper does; trained keeps those of the model.
        fragments: candidates drawn per width, I.
        depth_samples: depths mixed per forward: as many as fragments (drawn), or all.
        interpolation: how fragments of different size are aligned: average or linear over channels, or none (zeros).
        learning_rate: of the weights, SGD with Nesterov momentum, cosine to 0.
        momentum: of the weights.
        weight_decay: of the weights.
        logits_start: random is N(0, 0.01²); saliency begins where a trained model's own losses point, when one width or
            depth alone is cut.
        logits_learning_rate: of the logits, Adam; auto divides `LOGITS_TRAVEL` by the number of steps, so that short
            and long searches decide equally firmly.
        logits_weight_decay: of the logits.
        logits_betas: of Adam.
        cost_weight: λ before the cost term.
        tolerance: t; within (1 ± t) of the budget the cost term is off.
        band: paper: both sides by the tolerance; code: over the budget, or 5 % of the full cost under it.
        temperature_start: τ in the first epoch.
        temperature_end: τ in the last.
        temperature_schedule: linear or cosine.
        teacher_weight: share of a teacher's soft labels in both losses; 0 uses none.
        distillation_temperature: of those labels.
        architectures: how many take part in successive halving, which chooses one of them: of every depth and largest
            width the one that the logits ask for; 0 or 1 takes the most probable one instead.
        halving_steps: of the weights that they share, on the training set's first half. In as many as half of the steps
            the weights serve networks of looser budgets, smaller and smaller ones; then the worst three quarters of the
            architectures go, and the rest take turns.
        halving_images: of the second half, which the first round is judged on; every further round has twice as many,
            up to eight times.
        held_out_images: of the second half, on which saliency is measured.
        precision: of the arithmetic: no (float32) or bf16.
        sync_batch_norm: of several processes: batch norms use the statistics of the whole batch, not of their share.
        compile: run the supernet and the teacher under torch.compile while weights and logits step in turn; needs dense
            execution. Pays on GPUs, in searches much longer than the minutes of compiling.
        seed: of everything random.
    """

    epochs: int = 600
    batch_size: int = 256
    start: Literal["scratch", "trained"] = "scratch"
    fragments: int = 2
    depth_samples: Literal["drawn", "all"] = "all"
    interpolation: Literal["average", "linear", "none"] = "average"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    logits_start: Literal["random", "saliency"] = "random"
    logits_learning_rate: float | Literal["auto"] = 1e-3
    logits_weight_decay: float = 1e-3
    logits_betas: tuple[float, float] = (0.5, 0.999)
    cost_weight: float = 2.0
    tolerance: float = 0.05
    band: Literal["paper", "code"] = "paper"
    temperature_start: float = 10.0
    temperature_end: float = 0.1
    temperature_schedule: Literal["linear", "cosine"] = "linear"
    teacher_weight: float = 0.0
    distillation_temperature: float = 4.0
    architectures: int = 0
    halving_steps: int = 300
    halving_images: int = 128
    held_out_images: int = 512
    precision: Literal["no", "bf16"] = "no"
    sync_batch_norm: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        above_zero = [
            "halving_steps",
            "halving_images",
            "held_out_images",
            "batch_size",
            "fragments",
            "learning_rate",
            "temperature_start",
            "temperature_end",
        ]
        not_negative = [
            "epochs",
            "architectures",
            "cost_weight",
            "tolerance",
            "weight_decay",
            "logits_weight_decay",
        ]
        not_negative += ["logits_learning_rate"] if self.logits_learning_rate != "auto" else []
        check_options(
            self, "search", above_zero=[*above_zero, "distillation_temperature"], not_negative=not_negative,
            shares=("momentum", "teacher_weight"),
        )  # fmt: skip
        if self.compile and self.sync_batch_norm:
            raise ConfigError("search compile does not go with sync_batch_norm; set one of them to false")
        if len(self.logits_betas) != 2 or not all(0 <= beta < 1 for beta in self.logits_betas):
            raise ConfigError(f"search logits_betas are {self.logits_betas}; give two numbers in [0, 1)")
        if self.start == "scratch" and (self.architectures or self.logits_start == "saliency"):
            raise ConfigError(
                f"search start is scratch, but architectures is {self.architectures} and logits_start "
                f"{self.logits_start}; both need weights that know something: set start to trained, or logits_start to "
                f"random, architectures to 0 and epochs to some hundred. (In Python, dataclasses.replace("
                f"tas.CompressConfig().search, architectures={self.architectures}) changes the usual search)"
            )
        if self.epochs == 0 and self.logits_start == "random":
            raise ConfigError("search epochs is 0 and logits_start random: nothing would be searched; set one of them")

    @property
    def unread(self) -> dict[str, str]:
        """Options that this search never looks at, and why."""
        found = {}
        if self.epochs == 0:
            why = (
                "search.epochs is 0 (saliency and halving decide); set search.epochs beside it, or give it to tas-paper"
            )
            found |= dict.fromkeys(ALTERNATION, why)
        if self.architectures < 2:
            why = "search.architectures is below 2, so that none compete; set it beside"
            found |= dict.fromkeys(("halving_steps", "halving_images"), why)
            if self.epochs == 0:
                why = "search.epochs is 0 and search.architectures below 2, so that no weights move; set one beside"
                found |= dict.fromkeys(("learning_rate", "momentum", "weight_decay"), why)
        if self.teacher_weight == 0:
            found["distillation_temperature"] = "search.teacher_weight is 0, so that no teacher is asked; set it beside"
        if self.band == "code":
            found.setdefault("tolerance", "search.band is code, which has a width of its own; set paper beside")
        if self.logits_start == "random":
            found["held_out_images"] = "search.logits_start is random; set saliency beside it"
        return found

    def require_fit_for(self, execution: str) -> None:
        """Raise `ConfigError` where the supernet's execution cannot be compiled."""
        if self.compile and execution != "dense":
            raise ConfigError(
                f"search compile needs dense execution, where every sample has the same shapes, not {execution}; set "
                f"execution to dense, or compile to false"
            )

    def passes(self, images: int, batch_size: int, space: SearchSpace) -> float:
        """Passes over the training set that a search plans to make, in images it reads; see `passes_of`.

        A step of the weights and one of the logits read half of the set each, so an epoch is one pass. A measurement
        without gradients counts as a third of a training step: one product of three is computed.

        Args:
            images: in the training set.
            batch_size: of its batches; loaders of the user's have a size of their own.
            space: of the search.
        """
        steps = measured = 0
        if self.architectures > 1 and space.is_open:
            steps, left = self.halving_steps, self.architectures
            for one in self.halving_rounds(left):
                measured += one.images * left
                left = one.stay
        if self.logits_start == "saliency":
            measured += self.held_out_images * sum(len(sizes) - 1 for sizes in space.choices.values())
        return self.epochs + (steps * batch_size + measured / 3) / images

    def passes_of(self, rows: Iterable[Mapping[str, Any]], images: int, batch_size: int) -> float:
        """Passes that a search has made: fewer than planned where few architectures enter, more where others come in.

        Args:
            rows: of its record.
            images: in the training set.
            batch_size: of its batches.
        """
        latest = {(row.get("part"), row.get("round")): row for row in rows}  # one may have been done twice
        rounds = [row for (part, _), row in latest.items() if part == "halving"]
        measured = sum(row["images"] * len(row["losses"]) for row in rounds)
        if saliency := latest.get(("saliency", None)):
            measured += self.held_out_images * sum(len(losses) - 1 for losses in saliency["losses"].values())
        steps = max((row["steps"] for row in rounds), default=0)
        return self.epochs + (steps * batch_size + measured / 3) / images

    def halving_rounds(self, entrants: int) -> list[Planned]:
        """Rounds of successive halving: a first long one, after which most go, then half in each."""
        if entrants < 2:
            return []
        left = max(2, math.ceil(entrants / FIRST_CUT))
        first = round(FIRST_STEPS * self.halving_steps)
        rounds, count = [Planned(first, self.halving_images, left)], math.ceil(math.log2(left))
        for place in range(count):
            left = (left + 1) // 2
            images = self.halving_images * min(2 ** len(rounds), MOST_IMAGES)
            rounds.append(Planned(first + round((self.halving_steps - first) * (place + 1) / count), images, left))
        return rounds

    def temperature(self, progress: float) -> float:
        """τ when this share of the search is over."""
        low, high = self.temperature_end, self.temperature_start
        left = 1 - progress if self.temperature_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return low + (high - low) * left
