"""How a search runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tas.errors import ConfigError
from tas.options import check_options
from tas.space import SearchSpace

# Adam moves a logit by about its learning rate a step; 12 takes it from even odds to certainty, with room to turn back
LOGITS_TRAVEL = 12.0
FINALISTS = 6  # of all that were tried, the best, which are tried again
MORE = 4  # on so many times as many images, and places in them
# Options that are read only where weights and logits step in turn
ALTERNATION = frozenset({
    "fragments", "depth_samples", "interpolation", "logits_learning_rate", "logits_weight_decay", "logits_betas",
    "cost_weight", "tolerance", "band", "temperature_start", "temperature_end", "temperature_schedule", "compile",
    "learning_rate", "momentum", "weight_decay", "sync_batch_norm",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a search runs. The defaults are the paper's for CIFAR (Dong and Yang, 2019, sections 3 and 4.1).

    Attributes:
        epochs: passes over the halves of the training set in which weights and logits step in turn; with 0, saliency
            and trials alone decide.
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
        trials: architectures that are tried, at most; one of them is the result. Each is what the logits ask for under
            the budget, corrected by what earlier trials have shown; its layers are fitted to what the trained model
            makes of some images, and its loss is that on others. 0 takes the most probable architecture instead.
        trial_images: of the training set's first half, which are fitted on, and of its second half, which are judged
            on; fewer of large ones. The best few are tried again on four times as many.
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
    trials: int = 0
    trial_images: int = 256
    held_out_images: int = 512
    precision: Literal["no", "bf16"] = "no"
    sync_batch_norm: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        above_zero = [
            "trial_images",
            "held_out_images",
            "batch_size",
            "fragments",
            "learning_rate",
            "temperature_start",
            "temperature_end",
        ]
        not_negative = [
            "epochs",
            "trials",
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
        if self.start == "scratch" and (self.trials or self.logits_start == "saliency"):
            raise ConfigError(
                f"search start is scratch, but trials is {self.trials} and logits_start {self.logits_start}; both need "
                f"weights that know something: set start to trained, or logits_start to random, trials to 0 and epochs "
                f"to some hundred. (In Python, dataclasses.replace(tas.CompressConfig().search, trials={self.trials}) "
                f"changes the usual search)"
            )
        if self.epochs == 0 and self.logits_start == "random":
            raise ConfigError("search epochs is 0 and logits_start random: nothing would be searched; set one of them")

    @property
    def unread(self) -> dict[str, str]:
        """Options that this search never looks at, and why."""
        found = {}
        if self.epochs == 0:
            why = (
                "search.epochs is 0 (saliency and trials decide); set search.epochs beside it, or give it to tas-paper"
            )
            found |= dict.fromkeys(ALTERNATION, why)
        if self.trials == 0:
            found["trial_images"] = "search.trials is 0; set it beside"
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

    def passes(self, images: int, space: SearchSpace) -> float:
        """Passes over the training set that a search plans to make, in images it reads; see `passes_of`.

        A step of the weights and one of the logits read half of the set each, so an epoch is one pass. A measurement
        without gradients counts as a third of a training step: one product of three is computed.

        Args:
            images: in the training set.
            space: of the search.
        """
        measured = 0
        if self.trials and space.is_open:
            measured += 2 * self.trial_images * (self.trials + MORE * FINALISTS)
        if self.logits_start == "saliency":
            measured += self.held_out_images * sum(len(sizes) - 1 for sizes in space.choices.values())
        return self.epochs + measured / 3 / images

    def passes_of(self, rows: Iterable[Mapping[str, Any]], images: int) -> float:
        """Passes that a search has made: fewer than planned where trials end early, or images are large.

        Args:
            rows: of its record.
            images: in the training set.
        """
        latest = {(row.get("part"), row.get("round")): row for row in rows}  # one may have been done twice
        measured = sum(row["images"] * len(row["losses"]) for (part, _), row in latest.items() if part == "trials")
        if saliency := latest.get(("saliency", None)):
            measured += self.held_out_images * sum(len(losses) - 1 for losses in saliency["losses"].values())
        return self.epochs + measured / 3 / images

    def temperature(self, progress: float) -> float:
        """τ when this share of the search is over."""
        low, high = self.temperature_end, self.temperature_start
        left = 1 - progress if self.temperature_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return low + (high - low) * left
