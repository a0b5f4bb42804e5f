"""How a search runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tas.errors import ConfigError
from tas.options import check_options
from tas.space import SearchSpace

# Adam moves a logit by about its learning rate a step; 12 takes it from even odds to certainty, with room to turn back
LOGITS_TRAVEL = 12.0


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
        trials: most architectures that are tuned before one is chosen, of other depths and largest widths; 0 or 1 tries
            none.
        trial_steps: of the weights' optimizer, on the first half, before a trial's loss on the second is measured.
        trial_images: of the second half, on which trials are compared; a few hundred do not order close ones.
        finalists: how many of the best trials are tuned again, longer, before one of them is chosen; with 0 or 1 the
            best trial is.
        final_steps: of a finalist; short trials are too noisy to order the best.
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
    trial_steps: int = 60
    trial_images: int = 1024
    finalists: int = 0
    final_steps: int = 160
    held_out_images: int = 512
    precision: Literal["no", "bf16"] = "no"
    sync_batch_norm: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        above_zero = [
            "trial_steps",
            "trial_images",
            "final_steps",
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
            "finalists",
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
                f"to some hundred"
            )
        if self.epochs == 0 and self.logits_start == "random":
            raise ConfigError("search epochs is 0 and logits_start random: nothing would be searched; set one of them")

    def require_fit_for(self, execution: str) -> None:
        """Raise `ConfigError` where the supernet's execution cannot be compiled."""
        if self.compile and execution != "dense":
            raise ConfigError(
                f"search compile needs dense execution, where every sample has the same shapes, not {execution}; set "
                f"execution to dense, or compile to false"
            )

    def passes(self, images: int, space: SearchSpace) -> float:
        """Passes over the training set that a search makes at most, in images it reads.

        A step of the weights and one of the logits read half of the set each, so an epoch is one pass. A measurement
        without gradients counts as a third of a training step: one product of three is computed.

        Args:
            images: in the training set.
            space: of the search.
        """
        trials = self.trials if self.trials > 1 and space.is_open else 0
        finalists = min(trials, self.finalists) if self.finalists > 1 else 0
        steps = trials * self.trial_steps + finalists * self.final_steps
        measured = self.trial_images * (trials + finalists)
        if self.logits_start == "saliency":
            measured += self.held_out_images * sum(
                len(sizes) - 1 for sizes in (*space.widths.values(), *space.depths.values())
            )
        return self.epochs + (steps * self.batch_size + measured / 3) / images

    def temperature(self, progress: float) -> float:
        """τ when this share of the search is over."""
        low, high = self.temperature_end, self.temperature_start
        left = 1 - progress if self.temperature_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return low + (high - low) * left
