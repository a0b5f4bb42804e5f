"""Search the width of every layer and the depth of every stage by gradient descent."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.cost import CostTable
from tas.data import Batches, Source, as_source
from tas.data.augment import epoch_seed, own_randomness, seed_everything
from tas.decode import decode
from tas.errors import ConfigError, DataError, TrainingError
from tas.nn.supernet import Supernet
from tas.options import check_options
from tas.progress import progress_bar
from tas.record import Record
from tas.storage import restore_epoch, save_epoch
from tas.task import Loss, require_trainable, run_model, task_loss

# Adam moves a logit by about its learning rate a step; 12 takes it from even odds to certainty, with room to turn back
LOGITS_TRAVEL = 12.0


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a search runs. The defaults are the paper's for CIFAR (Dong and Yang, 2019, sections 3 and 4.1).

    Attributes:
        epochs: passes over the halves of the training set.
        batch_size: samples of each half a step.
        start: scratch resets the weights first, as the paper does; trained keeps those of the model.
        fragments: candidates drawn per width, I.
        depth_samples: depths mixed per forward: as many as fragments (drawn), or all.
        interpolation: how fragments of different size are aligned: average or linear over channels, or none (zeros).
        learning_rate: of the weights, SGD with Nesterov momentum, cosine to 0.
        momentum: of the weights.
        weight_decay: of the weights.
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
    seed: int = 0

    def __post_init__(self):
        above_zero = ["epochs", "batch_size", "fragments", "learning_rate", "temperature_start", "temperature_end"]
        not_negative = ["cost_weight", "tolerance", "weight_decay", "logits_weight_decay"]
        not_negative += ["logits_learning_rate"] if self.logits_learning_rate != "auto" else []
        check_options(
            self, "search", above_zero=[*above_zero, "distillation_temperature"], not_negative=not_negative,
            shares=("momentum", "teacher_weight"),
        )  # fmt: skip
        if len(self.logits_betas) != 2 or not all(0 <= beta < 1 for beta in self.logits_betas):
            raise ConfigError(f"search logits_betas are {self.logits_betas}; give two numbers in [0, 1)")

    def temperature(self, progress: float) -> float:
        """τ when this share of the search is over."""
        low, high = self.temperature_end, self.temperature_start
        left = 1 - progress if self.temperature_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return low + (high - low) * left


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        architecture: the most probable one under the budget.
        scores: log-probability of every candidate, by width and depth name.
        record: one row per epoch.
    """

    architecture: Architecture
    scores: dict[str, list[float]]
    record: Record


def search(
    supernet: Supernet,
    data: Any,
    *,
    budget: Budget | Amount | dict[str, Amount],
    config: SearchConfig | None = None,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    record: Record | None = None,
    checkpoint: Path | None = None,
) -> SearchResult:
    """Train the supernet's weights on one half of the training set and its logits on the other, in turn.

    Args:
        supernet: changed in place; its space says what is searched.
        data: a source, or a pair of loaders (training, test); the test set is not touched.
        budget: upper bounds the result holds.
        config: see `SearchConfig`; its fragments, depth samples and interpolation take the place of the supernet's.
        teacher: gives soft labels when `config.teacher_weight` is above 0.
        loss: (outputs, targets) to a scalar; cross-entropy by default.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch; the search goes on from it if it exists.

    Raises:
        BudgetError: nothing in the space fits the budget, known before any step.
        ModelError: every parameter is frozen, or the model does not accept the inputs.
        DataError: the training set cannot be halved, or without a loss is not that of a classification.
        TrainingError: a loss became NaN or infinite.
        RunError: the checkpoint belongs to another search.
    """
    from accelerate import Accelerator

    config, record = config or SearchConfig(), record if record is not None else Record()
    budget, source = Budget.of(budget), as_source(data)
    budget.require_reachable(supernet.graph, supernet.space)
    require_trainable(supernet.model)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device, devices = str(accelerator.device), [accelerator.device] if accelerator.device.type == "cuda" else []
    if config.start == "scratch":
        supernet.reset_weights(config.seed)
    _start_logits(supernet, config.seed)
    supernet.fragments, supernet.depth_samples = config.fragments, config.depth_samples
    supernet.interpolation = config.interpolation
    supernet.to(device)
    pairs = _halves(source, config, 0, device)[2]
    helper = teacher.to(device).eval() if teacher is not None else None
    steps = _Steps(supernet, budget, config, helper, loss, pairs * config.epochs)
    options = json.dumps(asdict(config))
    first = restore_epoch(checkpoint, options, steps.parts()) if checkpoint and checkpoint.exists() else 0
    with progress_bar("search", pairs * config.epochs, pairs * first) as bar, own_randomness(devices):
        for epoch in range(first, config.epochs):
            started = time.perf_counter()
            row = _epoch(steps, source, epoch, device, bar)
            record.add("search", epoch=epoch, seconds=round(time.perf_counter() - started, 3), **row)
            if checkpoint:
                save_epoch(checkpoint, epoch + 1, options, steps.parts())
    scores = supernet.scores()
    return SearchResult(decode(scores, supernet.graph, supernet.space, budget), scores, record)


def _start_logits(supernet: Supernet, seed: int) -> None:
    """N(0, 0.01²), as in the released code."""
    with torch.no_grad():
        noise = torch.randn(supernet.logits.shape, generator=torch.Generator().manual_seed(seed))
        supernet.logits.copy_(0.01 * noise)


def _halves(source: Source, config: SearchConfig, epoch: int, device: str) -> tuple[Batches, Batches, int]:
    """Batches for the weights, batches for the logits, and how many pairs they make."""
    first, second = (
        source.train_batches(config.batch_size, seed=config.seed, epoch=epoch, half=half, device=device)
        for half in (0, 1)
    )
    count = min(len(first), len(second))
    if count == 0:
        raise DataError(f"{source.name} has too few images for a search; each half of the training set needs a batch")
    return first, second, count


def _epoch(steps: _Steps, source: Source, epoch: int, device: str, bar: Any) -> dict[str, Any]:
    config, supernet = steps.config, steps.supernet
    seed = epoch_seed(config.seed, epoch, 2)
    seed_everything(seed)
    generator = torch.Generator(device).manual_seed(seed)
    first, second, count = _halves(source, config, epoch, device)
    supernet.train()
    temperature = config.temperature(epoch / max(1, config.epochs - 1))
    losses = torch.zeros(2)
    for step, (batch, other) in enumerate(zip(first, second, strict=False)):
        steps.set_learning_rate((epoch + step / count) / config.epochs)
        task = steps.weight_step(*batch, temperature, generator)
        held_out = steps.logits_step(*other, temperature, generator)
        losses += torch.stack([task.detach(), held_out.detach()]).cpu() / count
        bar.advance(
            f"epoch {epoch + 1}/{config.epochs}  loss {losses[0] * count / (step + 1):.3f}" if step % 10 == 0 else ""
        )
    if not bool(torch.isfinite(losses).all()):
        raise TrainingError(f"the loss of the search became {losses.tolist()}; lower search.learning_rate")
    return {
        "loss": round(float(losses[0]), 5),
        "held_out_loss": round(float(losses[1]), 5),
        **steps.describe(temperature),
    }


class _Steps:
    """The two alternating steps and what they need."""

    def __init__(
        self,
        supernet: Supernet,
        budget: Budget,
        config: SearchConfig,
        teacher: nn.Module | None,
        loss: Loss | None,
        total: int = 1,
    ):
        self.supernet, self.config, self.teacher, self.loss = supernet, config, teacher, loss
        graph, space = supernet.graph, supernet.space
        self.limits = budget.limits(graph)
        self.tables = {name: CostTable(graph.cost(name), space.widths, space.depths) for name in self.limits}
        self.full = {name: graph.cost(name).exact(graph.full) for name in self.limits}
        self.weights = torch.optim.SGD(
            supernet.weights(), config.learning_rate, config.momentum, weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )  # fmt: skip
        rate = config.logits_learning_rate
        rate = LOGITS_TRAVEL / total if rate == "auto" else rate
        self.logits = torch.optim.Adam(
            [supernet.logits], rate, config.logits_betas, weight_decay=config.logits_weight_decay
        )

    def set_learning_rate(self, progress: float) -> None:
        """Cosine to 0."""
        for group in self.weights.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def weight_step(self, inputs: Tensor, targets: Any, temperature: float, generator: torch.Generator) -> Tensor:
        """One step of the weights on a batch of the first half."""
        self.supernet.draw(temperature, generator, differentiable=False)
        value = self._task_loss(inputs, targets)
        self.weights.zero_grad()
        value.backward()
        for weight in self.supernet.weights():  # blocks that did not run decay too, as in dense execution
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self.weights.step()
        return value

    def logits_step(self, inputs: Tensor, targets: Any, temperature: float, generator: torch.Generator) -> Tensor:
        """One step of the logits on a batch of the second half."""
        self.supernet.draw(temperature, generator)
        task = self._task_loss(inputs, targets)
        value = task + self.config.cost_weight * self.cost_loss()
        if value.requires_grad:  # with one fragment, inside the band, nothing reaches the logits
            (gradient,) = torch.autograd.grad(value, [self.supernet.logits], allow_unused=True)
            self.supernet.logits.grad = gradient
            self.logits.step()
        return task

    def _task_loss(self, inputs: Tensor, targets: Any) -> Tensor:
        config, wanted = self.config, None
        outputs = run_model(self.supernet, inputs)
        if self.teacher is not None and config.teacher_weight:
            with torch.no_grad():
                wanted = self.teacher(inputs)
        return task_loss(
            outputs, targets, loss=self.loss, wanted=wanted, teacher_weight=config.teacher_weight,
            temperature=config.distillation_temperature,
        )  # fmt: skip

    def cost_loss(self) -> Tensor:
        """± log of the expected cost outside the tolerance band of the budget, 0 inside; summed over the bounds.

        Source:
            Dong and Yang, 2019, equation 7; the band of the released code is paper.md's section 3.
        """
        probabilities = self.supernet.log_probabilities().exp()
        likely, config = self.supernet.most_probable(), self.config
        total = probabilities.new_zeros(())
        for name, limit in self.limits.items():
            cost = self.supernet.graph.cost(name).exact(likely)
            high = limit * (1 + config.tolerance) if config.band == "paper" else limit
            low = limit * (1 - config.tolerance) if config.band == "paper" else limit - 0.05 * self.full[name]
            if cost > high or cost < low:
                expected = torch.log(self.tables[name].expected(probabilities) / limit)
                total = total + (expected if cost > high else -expected)
        return total

    def describe(self, temperature: float) -> dict[str, Any]:
        """The state of the logits, for the record."""
        likely, graph = self.supernet.most_probable(), self.supernet.graph
        with torch.no_grad():
            probabilities = self.supernet.log_probabilities().exp()
            expected = {name: round(float(table.expected(probabilities))) for name, table in self.tables.items()}
        return {
            "temperature": round(temperature, 4),
            "entropy": round(float(-(probabilities * probabilities.clamp_min(1e-12).log()).sum(1).mean()), 4),
            "most_probable": {name: graph.cost(name).exact(likely) for name in self.limits},
            "expected": expected,
            "architecture": {"widths": dict(likely.widths), "depths": dict(likely.depths)},
        }

    def parts(self) -> dict[str, Any]:
        """Everything whose state a resumed search needs."""
        return {"supernet": self.supernet, "weights": self.weights, "logits": self.logits}
