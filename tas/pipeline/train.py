"""Train a network, with or without a teacher: one loop for teachers and students."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.data import Source, as_source
from tas.data.augment import epoch_seed
from tas.errors import ConfigError, DataError, ModelError, RunError, TrainingError
from tas.nn.transfer import distillation_loss, imitation_loss
from tas.progress import progress_bar
from tas.record import Record
from tas.storage import load_state, save_state

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The defaults are the paper's final training on CIFAR (Dong and Yang, 2019).

    Attributes:
        epochs: passes over the training set.
        warmup_epochs: epochs in which the learning rate rises linearly; then a cosine to 0.
        batch_size: samples a step.
        learning_rate: of SGD, at its highest.
        momentum: Nesterov's.
        weight_decay: on all weights.
        teacher_weight: share of the teacher's term in the loss, in [0, 1]; without a teacher it has no effect.
        temperature: of the distillation.
        precision: of the arithmetic: no (float32), bf16 or fp16.
        seed: of shuffling, augmentation and dropout.
    """

    epochs: int = 300
    warmup_epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    teacher_weight: float = 0.9
    temperature: float = 4.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train {name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.teacher_weight <= 1:
            raise ConfigError(f"train teacher_weight is {self.teacher_weight}; it must lie in [0, 1]")


def learning_rate_factor(step: int, *, warmup: int, total: int) -> float:
    """Share of the highest learning rate at a step: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(
    model: nn.Module,
    data: Any,
    *,
    teacher: nn.Module | None = None,
    config: TrainConfig | None = None,
    loss: Loss | None = None,
    record: Record | None = None,
    checkpoint: Path | None = None,
    stage: str = "train",
) -> nn.Module:
    """Train `model` in place and return it, in evaluation mode, with the weights of the last epoch.

    Args:
        model: the network to train.
        data: a `tas.data` source, or a pair of loaders (training, test) yielding (inputs, targets).
        teacher: its outputs are imitated; used in evaluation mode, never changed.
        config: see `TrainConfig`.
        loss: (outputs, targets) to a scalar; cross-entropy by default. With a teacher and a loss of your own, the
            teacher's term is the mean squared distance of the outputs.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch; training goes on from it if it exists.
        stage: name in the record and the progress bar.

    Raises:
        TrainingError: the loss became NaN or infinite.
        RunError: the checkpoint belongs to another training.
    """
    from accelerate import Accelerator

    config, record = config or TrainConfig(), record if record is not None else Record()
    source = as_source(data)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    device = str(accelerator.device)
    model.to(device)
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    objective = _Objective(teacher.to(device).eval() if teacher is not None else None, config, loss)
    first = _restore(checkpoint, model, optimizer, config) if checkpoint and checkpoint.exists() else 0
    steps = len(source.train_batches(config.batch_size, seed=config.seed, epoch=first, device=device))
    warmup, total = min(config.warmup_epochs, config.epochs // 2) * steps, config.epochs * steps
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    schedule = partial(learning_rate_factor, warmup=warmup, total=total)
    with progress_bar(stage, total, first * steps) as bar, torch.random.fork_rng(devices=devices):
        for epoch in range(first, config.epochs):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(config.seed, epoch, None))
            batches = source.train_batches(config.batch_size, seed=config.seed, epoch=epoch, device=device)
            meter = _Meter(stage)
            prepared.train()
            for step, (inputs, targets) in enumerate(batches, epoch * steps):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * schedule(step)
                with accelerator.autocast():
                    outputs = _forward(prepared, inputs)
                    value = objective(outputs, inputs, targets)
                optimizer.zero_grad()
                accelerator.backward(value)
                optimizer.step()
                meter.add(value, outputs, targets)
                bar.advance(f"epoch {epoch + 1}/{config.epochs}  {meter}" if step % 10 == 0 else "")
            record.add(stage, epoch=epoch, seconds=round(time.perf_counter() - started, 3), **meter.means())
            if checkpoint:
                _save(checkpoint, model, optimizer, config, epoch + 1)
    return model.eval()


class _Objective:
    """The loss of one batch."""

    def __init__(self, teacher: nn.Module | None, config: TrainConfig, loss: Loss | None):
        self.teacher, self.config, self.loss = teacher, config, loss

    def __call__(self, outputs: Any, inputs: Tensor, targets: Any) -> Tensor:
        if self.loss is None:
            require_logits(outputs, targets)
        if self.teacher is None or self.config.teacher_weight == 0:
            return (self.loss or F.cross_entropy)(outputs, targets)
        with torch.no_grad():
            wanted = self.teacher(inputs)
        share = self.config.teacher_weight
        if self.loss is not None:
            return (1 - share) * self.loss(outputs, targets) + share * imitation_loss(outputs, wanted)
        return distillation_loss(outputs, wanted, targets, temperature=self.config.temperature, teacher_weight=share)


class _Meter:
    """Running means over an epoch; reads the device only when asked."""

    def __init__(self, stage: str):
        self.stage, self.count, self.is_classes = stage, 0, True
        self.loss, self.right = torch.zeros(()), torch.zeros(())

    def add(self, loss: Tensor, outputs: Any, targets: Any) -> None:
        """Count one batch."""
        size = len(targets)
        self.count += size
        self.loss = self.loss.to(loss.device) + loss.detach() * size
        self.is_classes = isinstance(outputs, Tensor) and outputs.dim() == 2 and targets.dim() == 1
        if self.is_classes:
            self.right = self.right.to(loss.device) + (outputs.argmax(1) == targets).sum()

    def means(self) -> dict[str, float]:
        """Loss, and for a classification the percentage of right classes.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        loss = float(self.loss) / self.count
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {self.stage} became {loss}; lower its learning_rate, or check the images and "
                f"weights for NaN"
            )
        found = {"loss": round(loss, 5)}
        return {**found, "accuracy": round(100 * float(self.right) / self.count, 3)} if self.is_classes else found

    def __str__(self):
        return "  ".join(f"{name} {value:.3f}" for name, value in self.means().items())


def _forward(model: nn.Module, inputs: Tensor) -> Any:
    try:
        return model(inputs)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the model does not accept inputs of shape {tuple(inputs.shape)}: {reason}. Give images of the size and "
            f"channels it was built for (grey images can be repeated to three channels)"
        ) from error


@torch.no_grad()
def require_fit_for_data(model: nn.Module, source: Source, *, classifies: bool) -> None:
    """Try a model on two training images, before anything long begins.

    Raises:
        ModelError: it does not accept them, or answers with NaN.
        DataError: the labels are not those of its classes.
    """
    device = str(next(model.parameters()).device)
    inputs, targets = next(iter(source.train_batches(2, device=device)))
    outputs = _forward(model.eval(), inputs)
    if isinstance(outputs, Tensor) and not bool(torch.isfinite(outputs).all()):
        raise ModelError("the model's outputs are not finite on training images; check its weights for NaN")
    if classifies:
        require_logits(outputs, targets)
        if source.num_classes is not None and source.num_classes > outputs.shape[1]:
            raise DataError(
                f"{source.name} has {source.num_classes} classes, the model only {outputs.shape[1]} classes; "
                f"build the model with the data's number of classes"
            )


def require_logits(outputs: Any, targets: Any) -> None:
    """Check that outputs and targets are those of a classification.

    Raises:
        DataError: a label lies beyond the model's classes, or the task is another one.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or not isinstance(targets, Tensor) or targets.dim() != 1:
        raise DataError("this is not a classification with one label per sample; give your own loss= and metric=")
    if len(targets) and int(targets.max()) >= outputs.shape[1]:
        raise DataError(
            f"the data has a label {int(targets.max())}, the model only {outputs.shape[1]} classes; "
            f"build the model with the data's number of classes"
        )


def _save(path: Path, model: nn.Module, optimizer: Any, config: TrainConfig, epochs: int) -> None:
    state = {"epochs": epochs, "config": json.dumps(asdict(config)), "model": model.state_dict()}
    save_state(path, {**state, "optimizer": optimizer.state_dict()})


def _restore(path: Path, model: nn.Module, optimizer: Any, config: TrainConfig) -> int:
    state = load_state(path)
    if state.get("config") != json.dumps(asdict(config)):
        raise RunError(
            f"{path} was written with other options; give the same ones, or delete it to start this stage anew"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epochs"]
