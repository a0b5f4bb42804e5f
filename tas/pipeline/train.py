"""Train a network, with or without a teacher: one loop for teachers and students."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.data import Batch, Batches, Source, as_source
from tas.data.augment import epoch_seed, own_randomness, seed_everything
from tas.data.batches import way_out_of_nan
from tas.data.sharding import sharded
from tas.data.source import example_of
from tas.distributed import average_gradients, copy_from_main, join, summed
from tas.errors import ConfigError, TrainingError
from tas.nn.compiled import compiled
from tas.nn.memory_format import channels_last
from tas.nn.modes import evaluating, require_trainable, teaching
from tas.nn.statistics import average_statistics
from tas.nn.sync_batch_norm import synchronized_batch_norm
from tas.nn.transfer import Attention, Hints, match_layers, recorded
from tas.options import check_options, or_default, split_patterns
from tas.progress import Bar, progress_bar
from tas.record import Record
from tas.storage import restore_epoch, save_epoch
from tas.task import (
    FEATURE_TRANSFERS,
    TRANSFER_WEIGHTS,
    Loss,
    Transfer,
    dtype_of,
    right_and_counted,
    run_model,
    task_loss,
    warn_of_slow_precision,
)

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The defaults are the paper's final training on CIFAR (Dong and Yang, 2019).

    Attributes:
        epochs: passes over the training set; of the last, a part where this is no whole number.
        warmup_epochs: epochs in which the learning rate rises linearly, at most half of all; then a cosine to 0.
        batch_size: samples a step.
        learning_rate: of SGD, at its highest.
        momentum: Nesterov's.
        weight_decay: on all weights.
        transfer: what is learned from the teacher: its outputs (kd, dkd, dist), the features of its layers (hints,
            attention), or nothing; without a teacher it has no effect.
        teacher_weight: share of the teacher's term in kd, in [0, 1]; 0 uses no teacher.
        transfer_weight: of the teacher's term in the others, beside a loss against the labels of weight 1; in dkd of
            its part for the other classes. None is the field's own: hints 100, attention 500, dkd 2, dist 1.
        temperature: of kd, dkd and dist.
        layers: module paths whose features hints and attention compare, such as layer1,layer2; by default the last of
            every stage.
        precision: of the arithmetic: no (float32), bf16 or fp16.
        sync_batch_norm: of several processes: batch norms use the statistics of the whole batch, not of their share.
        compile: run the network and its teacher under torch.compile; pays on GPUs, in trainings much longer than the
            minute or two of compiling.
        seed: of shuffling, augmentation and dropout.
    """

    epochs: int | float = 300
    warmup_epochs: int | float = 5
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    transfer: Transfer = "kd"
    teacher_weight: float = 0.9
    transfer_weight: float | None = None
    temperature: float = 4.0
    layers: tuple[str, ...] | str = ()
    precision: Literal["no", "bf16", "fp16"] = "no"
    sync_batch_norm: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self):
        above_zero = ["epochs", "batch_size", "learning_rate", "temperature"]
        above_zero += ["transfer_weight"] if self.transfer_weight is not None else []
        check_options(
            self, "train", above_zero=above_zero, not_negative=("warmup_epochs", "weight_decay"),
            shares=("momentum", "teacher_weight"),
        )  # fmt: skip
        if self.transfer_weight is not None and self.transfer not in TRANSFER_WEIGHTS:
            raise ConfigError(
                f"train transfer_weight is {self.transfer_weight}, but transfer is {self.transfer}, which does not use "
                f"it; the weight of kd is teacher_weight"
            )
        if self.compile and (self.sync_batch_norm or self.transfer in FEATURE_TRANSFERS):
            what = "sync_batch_norm" if self.sync_batch_norm else f"transfer {self.transfer}"
            raise ConfigError(f"train compile does not go with {what}; set compile to false, or choose another")
        for name in ("epochs", "warmup_epochs"):  # 30.0 and 30 are one option in files and messages
            value = getattr(self, name)
            object.__setattr__(self, name, int(value) if value == int(value) else float(value))
        object.__setattr__(self, "layers", split_patterns(self.layers))
        if self.layers and self.transfer not in FEATURE_TRANSFERS:
            raise ConfigError(
                f"train layers are {', '.join(self.layers)}, but transfer is {self.transfer}, which does not use them; "
                f"choose hints or attention"
            )

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher would be asked."""
        return self.transfer != "none" and not (self.transfer == "kd" and self.teacher_weight == 0)


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

    Of several processes all must call it; each batch is split over them.

    Args:
        model: the network to train.
        data: a `tas.data` source, or a pair of loaders (training, test) yielding (inputs, targets).
        teacher: the network learns from it as `config.transfer` says; a copy is used, in evaluation mode.
        config: see `TrainConfig`.
        loss: (outputs, targets) to a scalar; cross-entropy by default. With a teacher and a loss of your own, the
            teacher's term of kd is the mean squared distance of the outputs.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch; training goes on from it if it exists.
        stage: name in the record and the progress bar.

    Raises:
        ModelError: every parameter is frozen, or the model does not accept the inputs.
        DataError: without a loss, the data is not that of a classification.
        ConfigError: the layers to compare do not exist or do not fit, or the transfer is for another task.
        TrainingError: the loss became NaN or infinite.
        RunError: the checkpoint belongs to another training.
    """
    config, record = or_default(config, TrainConfig), record if record is not None else Record()
    home = join()
    source, device = sharded(as_source(data)), str(home)
    require_trainable(model)
    warn_of_slow_precision(config.precision, home.type)
    model.to(device)
    helper = teaching(teacher, device) if teacher is not None and config.uses_teacher else None
    comparison, layers = _feature_comparison(model, helper, source, config)
    copy_from_main(model, helper, comparison)
    steps = len(source.train_batches(config.batch_size, seed=config.seed, device=device))
    models = [model, helper] if helper is not None else [model]
    with (
        own_randomness(home),
        recorded(models, layers) as take,
        channels_last(model, helper, precision=config.precision),
        synchronized_batch_norm(config.sync_batch_norm),
    ):
        trainer = _Trainer(model, helper, comparison, take, config, loss, steps)
        options = json.dumps({**asdict(config), "steps": steps})
        first = restore_epoch(checkpoint, options, trainer.parts)
        total = trainer.total
        with progress_bar(stage, total, min(first * steps, total)) as bar:
            for epoch in range(first, math.ceil(total / steps)):
                started = time.perf_counter()
                seed_everything(epoch_seed(config.seed, epoch, None))
                batches = source.train_batches(config.batch_size, seed=config.seed, epoch=epoch, device=device)
                left = total - epoch * steps
                meter = _Meter(stage, batches)
                means = trainer.epoch(batches if left >= steps else islice(batches, left), epoch, bar, meter)
                record.add(stage, epoch=epoch, seconds=round(time.perf_counter() - started, 3), **means)
                if checkpoint:
                    save_epoch(checkpoint, epoch + 1, options, trainer.parts)
    return evaluating(model)


def _feature_comparison(
    model: nn.Module, helper: nn.Module | None, source: Source, config: TrainConfig
) -> tuple[Hints | Attention | None, list[str]]:
    """The term of a loss that compares features, and whose; none where the transfer is another."""
    if helper is None or config.transfer not in FEATURE_TRANSFERS:
        return None, []
    like = next(model.parameters())
    example = example_of(source, dtype_of(model)).to(like.device)
    matches = match_layers(model, helper, example, config.layers)
    comparison = Hints(matches, config.seed) if config.transfer == "hints" else Attention(matches)
    return comparison.to(like.device, dtype_of(model)), [match.layer for match in matches]


class _Trainer:
    """A network in training: its optimizer, its teacher, and the steps of an epoch."""

    def __init__(
        self,
        model: nn.Module,
        helper: nn.Module | None,
        comparison: Hints | Attention | None,
        take: Callable[[], list[list[Tensor]]],
        config: TrainConfig,
        loss: Loss | None,
        steps: int,
    ):
        self.model, self.comparison, self.take = model, comparison, take
        self.network = compiled(model, config.compile)
        self.helper = compiled(helper, config.compile) if helper is not None else None
        self.config, self.loss, self.steps = config, loss, steps
        self.total = max(1, round(config.epochs * steps))
        self.warmup = min(round(config.warmup_epochs * steps), self.total // 2)
        self.weight = config.transfer_weight or TRANSFER_WEIGHTS.get(config.transfer, 0.0)
        learning = [*model.parameters(), *(comparison.parameters() if comparison is not None else ())]
        self.learning = [parameter for parameter in learning if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(
            self.learning, config.learning_rate, config.momentum, weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )  # fmt: skip
        # Not accelerate's own mixed precision: one process has one, and the stages of a run may differ in theirs.
        kind = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=config.precision == "fp16")
        self.autocast = partial(torch.autocast, kind, PRECISIONS[config.precision], enabled=config.precision != "no")

    @property
    def parts(self) -> dict[str, Any]:
        """Everything whose state a resumed training needs."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts | ({"comparison": self.comparison} if self.comparison is not None else {})

    def epoch(self, batches: Iterable[Batch], epoch: int, bar: Bar, meter: _Meter) -> dict[str, float]:
        """One pass, or the part of it in `batches`; gives what the meter has counted."""
        self.model.train()
        for step, (inputs, targets) in enumerate(batches):
            self._set_learning_rate(epoch * self.steps + step)
            value, outputs = self._step(inputs, targets)
            meter.add(value, outputs, targets)
            bar.advance(f"epoch {epoch + 1}/{self.config.epochs:g}  {meter}" if step % 10 == 0 else "")
        average_statistics(self.model)
        return meter.means()

    def _set_learning_rate(self, step: int) -> None:
        factor = learning_rate_factor(step, warmup=self.warmup, total=self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def _step(self, inputs: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Loss and outputs, before the weights move."""
        config = self.config
        with self.autocast():
            outputs = run_model(self.network, inputs)
            value = task_loss(
                outputs, targets, loss=self.loss, wanted=_answer(self.helper, inputs),
                teacher_weight=config.teacher_weight, temperature=config.temperature,
                transfer=config.transfer, transfer_weight=self.weight,
            )  # fmt: skip
            if self.comparison is not None:
                value = value + self.weight * self.comparison(*self.take())
        self.optimizer.zero_grad()
        self.scaler.scale(value).backward()
        average_gradients(self.learning)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value, outputs


@torch.no_grad()
def _answer(teacher: nn.Module | None, inputs: Tensor) -> Any:
    return None if teacher is None else run_model(teacher, inputs)


class _Meter:
    """Running means over an epoch of these batches and all processes; reads the device only when asked."""

    def __init__(self, stage: str, batches: Batches):
        self.stage, self.batches, self.steps = stage, batches, 0
        self.count, self.is_classes = 0, True
        self.loss, self.right, self.labels = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, loss: Tensor, outputs: Any, targets: Any) -> None:
        """Count one batch."""
        size = len(targets)
        self.steps, self.count = self.steps + 1, self.count + size
        self.loss = self.loss.to(loss.device) + loss.detach() * size
        self.is_classes = isinstance(outputs, Tensor) and outputs.dim() == 2 and targets.dim() == 1
        self.is_classes = self.is_classes and not targets.is_floating_point()
        if self.is_classes:
            right, counted = right_and_counted(outputs, targets)
            self.right, self.labels = self.right.to(loss.device) + right, self.labels.to(loss.device) + counted

    def means(self) -> dict[str, float]:
        """Loss, and for a classification the percentage of right classes; all processes must ask.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        total, right, labels, count = summed([float(self.loss), float(self.right), float(self.labels), self.count])
        loss = total / max(1, count)
        if not math.isfinite(loss):
            way_out = "lower its learning_rate, or check the weights for NaN"
            seen = islice(self.batches, self.steps)
            raise TrainingError(f"the loss of {self.stage} became {loss}; {way_out_of_nan(seen, way_out)}")
        found = {"loss": round(loss, 5)}
        return {**found, "accuracy": round(100 * right / max(1, labels), 3)} if self.is_classes else found

    def __str__(self):
        return "  ".join(f"{name} {value:.3f}" for name, value in self.means().items())
