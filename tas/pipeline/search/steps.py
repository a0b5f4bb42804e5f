"""The paper's alternation: a step of the weights on one half of the training set, a step of the logits on the other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.budget import Budget
from tas.cost import CostTable
from tas.data import Batch, Batches, Source
from tas.data.augment import epoch_seed, seed_everything
from tas.data.batches import way_out_of_nan
from tas.distributed import average_gradients, num_processes, summed
from tas.errors import DataError, TrainingError
from tas.nn.compiled import compiled
from tas.nn.supernet import Supernet
from tas.pipeline.search.config import LOGITS_TRAVEL, SearchConfig
from tas.task import Loss, run_model, task_loss


def random_logits(supernet: Supernet, seed: int) -> None:
    """N(0, 0.01²), as in the released code."""
    with torch.no_grad():
        noise = torch.randn(supernet.logits.shape, generator=torch.Generator().manual_seed(seed))
        supernet.logits.copy_(0.01 * noise)


def halves(source: Source, config: SearchConfig, epoch: int, device: str) -> tuple[Batches, Batches, int]:
    """Batches for the weights, batches for the logits, and how many pairs they make."""
    first, second = (
        source.train_batches(config.batch_size, seed=config.seed, epoch=epoch, half=half, device=device)
        for half in (0, 1)
    )
    count = min(len(first), len(second))
    if count == 0:
        raise DataError(f"{source.name} has too few images for a search; each half of the training set needs a batch")
    return first, second, count


def _not_finite(losses: list[float], batches: Iterable[Batch]) -> str:
    way_out = way_out_of_nan(batches, "lower search.learning_rate")
    return f"the loss of the search became {losses}; {way_out}"


def run_epoch(steps: Steps, source: Source, epoch: int, device: str, bar: Any) -> dict[str, Any]:
    """One pass over both halves in turn; gives the epoch's row of the record."""
    config, supernet = steps.config, steps.supernet
    seed = epoch_seed(config.seed, epoch, 2)
    seed_everything(seed)
    generator = torch.Generator(device).manual_seed(seed)
    first, second, count = halves(source, config, epoch, device)
    supernet.train()
    temperature = config.temperature(epoch / max(1, config.epochs - 1))
    losses = torch.zeros(2)
    for step, (batch, other) in enumerate(zip(first, second, strict=False)):
        steps.set_learning_rate((epoch + step / count) / config.epochs)
        task = steps.weight_step(*batch, temperature, generator)
        held_out = steps.logits_step(*other, temperature, generator)
        losses += torch.stack([task.detach(), held_out.detach()]).cpu() / count
        if not supernet.logits.isfinite().all():  # the same on all processes; nothing can be drawn from them
            raise TrainingError(_not_finite(losses.tolist(), [batch, other]))
        bar.advance(
            f"epoch {epoch + 1}/{config.epochs}  loss {losses[0] * count / (step + 1):.3f}" if step % 10 == 0 else ""
        )
    means = [total / num_processes() for total in summed(losses.tolist())]
    if not all(map(math.isfinite, means)):
        raise TrainingError(_not_finite(means, chain(first, second)))
    return {
        "loss": round(means[0], 5),
        "held_out_loss": round(means[1], 5),
        **steps.describe(temperature),
    }


class Steps:
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
        self.supernet, self.config, self.loss = supernet, config, loss
        config.require_fit_for(supernet.execution)
        self.network = compiled(supernet, config.compile)  # of the alternation; cut networks have shapes of their own
        self.teacher = compiled(teacher, config.compile) if teacher is not None else None
        graph, space = supernet.graph, supernet.space
        self.limits = budget.limits(graph)
        self.tables = {name: CostTable(graph.cost(name), space.widths, space.depths) for name in self.limits}
        self.full = {name: graph.full_cost(name) for name in self.limits}
        self.trained = supernet.weights()
        self.weights = torch.optim.SGD(
            self.trained, config.learning_rate, config.momentum, weight_decay=config.weight_decay,
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
        value = self.objective(self.network, inputs, targets, self.answer(inputs))
        self.weights.zero_grad()
        if value.requires_grad:  # what may learn can lie in blocks that were not drawn
            value.backward()
        for weight in self.trained:  # blocks that did not run decay too, as in dense execution
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        average_gradients(self.trained)
        self.weights.step()
        return value

    def step_of(self, architecture: Architecture, inputs: Tensor, targets: Any) -> None:
        """One step of one architecture's weights; channels that it lacks are moved by momentum and decay alone."""
        wanted = self.answer(inputs)
        with self.supernet.fixed(architecture):
            value = self.objective(self.supernet, inputs, targets, wanted)
            self.weights.zero_grad()
            if value.requires_grad:
                value.backward()
        average_gradients(self.trained)
        self.weights.step()

    def logits_step(self, inputs: Tensor, targets: Any, temperature: float, generator: torch.Generator) -> Tensor:
        """One step of the logits on a batch of the second half."""
        self.supernet.draw(temperature, generator)
        task = self.objective(self.network, inputs, targets, self.answer(inputs))
        value = task + self.config.cost_weight * self.cost_loss()
        if value.requires_grad:  # with one fragment, inside the band, nothing reaches the logits
            (gradient,) = torch.autograd.grad(value, [self.supernet.logits], allow_unused=True)
            self.supernet.logits.grad = gradient
            average_gradients([self.supernet.logits])
            self.logits.step()
        return task

    @torch.no_grad()
    def answer(self, inputs: Tensor) -> Any:
        """What the teacher says of the inputs; None where it is not asked."""
        if self.teacher is None or not self.config.teacher_weight:
            return None
        with self._precision(inputs):
            return run_model(self.teacher, inputs)

    def objective(self, network: nn.Module, inputs: Tensor, targets: Any, wanted: Any) -> Tensor:
        """The loss of a network on a batch, against the targets and what the teacher says."""
        with self._precision(inputs):
            return task_loss(
                run_model(network, inputs), targets, loss=self.loss, wanted=wanted,
                teacher_weight=self.config.teacher_weight, temperature=self.config.distillation_temperature,
            )  # fmt: skip

    def _precision(self, inputs: Tensor) -> AbstractContextManager[Any]:
        return torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def cost_loss(self) -> Tensor:
        """± log of the expected cost outside the tolerance band of the budget, 0 inside; summed over the bounds.

        Source:
            Dong and Yang, 2019, equation 7; the other band is that of their released code.
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
            "architecture": likely.to_dict(),
        }

    def parts(self) -> dict[str, Any]:
        """Everything whose state a resumed search needs."""
        return {"supernet": self.supernet, "weights": self.weights, "logits": self.logits}
