"""What a model and its data must agree on, and the loss that search and training share."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.data import Source
from tas.data.augment import own_randomness
from tas.data.batches import described, way_out_of_nan
from tas.data.tensors import IGNORED
from tas.errors import ConfigError, DataError, ModelError, first_line
from tas.nn.modes import evaluating, require_module, require_trainable
from tas.nn.outputs import tensors_of
from tas.nn.transfer import decoupled_loss, distillation_loss, imitation_loss, match_layers, relation_loss, wide

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Any]
Transfer = Literal["none", "kd", "hints", "attention", "dkd", "dist"]

# Beside a loss against the labels of weight 1. Hints: Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699.
# Attention: β / 2 with β = 10³ over positions and batch, section 4.1 of its paper. DKD, DIST: the authors' code.
TRANSFER_WEIGHTS: dict[str, float] = {"hints": 100.0, "attention": 500.0, "dkd": 2.0, "dist": 1.0}
FEATURE_TRANSFERS = ("hints", "attention")
OUTPUT_TRANSFERS = ("kd", "dkd", "dist")
OF_THE_MACHINE = ("out of memory", "CUDA error", "cuDNN error", "CUBLAS_STATUS")  # not of the images
COMPILER = ("torch._dynamo", "torch._inductor", "triton")  # modules of what torch.compile raises


def warn_of_slow_precision(precision: str, device_type: str) -> None:
    """Say so where a processor has no instructions for half precision: convolutions then take twenty times as long."""
    capability = torch.backends.cpu.get_cpu_capability()
    if precision != "no" and device_type == "cpu" and capability in ("NO AVX", "AVX2"):
        warnings.warn(
            f"this processor ({capability}) has no instructions for {precision}: convolutions take some twenty times "
            f"as long as in float32. Set precision to no",
            stacklevel=3,
        )


def run_model(model: nn.Module, inputs: Tensor) -> Any:
    """What the model answers.

    Raises:
        ModelError: it does not accept the inputs, or cannot be compiled.
    """
    try:
        return model(inputs)
    except TypeError as error:
        if f"{getattr(model.forward, '__qualname__', '')}() missing" not in str(error):
            raise
        raise ModelError(f"{error}; wrap the model in a module that takes one tensor and splits it") from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, torch.AcceleratorError) or any(word in str(error) for word in OF_THE_MACHINE):
            raise
        if type(error).__module__.startswith(COMPILER):
            reason = " ".join(str(error).strip().splitlines()[:2])
            raise ModelError(
                f"torch.compile failed: {reason}. Set compile to false, or see what it needs on this machine (a C++ "
                f"compiler, on a GPU Triton)"
            ) from error
        if "same device" in str(error):
            raise ModelError(
                f"{type(model).__name__} holds a tensor that does not move to {inputs.device} with it "
                f"({first_line(error)}); make it a buffer (register_buffer)"
            ) from error
        if inputs.dtype != (wanted := dtype_of(model)):
            raise ModelError(
                f"the data gives {inputs.dtype} images, the model's weights are {wanted}; convert one of them (images: "
                f"v2.ToDtype(torch.float32, scale=True) among the transforms, model: model.float())"
            ) from error
        raise ModelError(
            f"the model does not accept inputs of shape {tuple(inputs.shape)}: {first_line(error)}. Give images of the "
            f"size and channels it was built for (grey images can be repeated to three channels)"
        ) from error


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of a model's weights; float32 where there are none."""
    require_module(model)
    kinds = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    return kinds[0] if kinds else torch.float32


def task_loss(
    outputs: Any,
    targets: Any,
    *,
    loss: Loss | None,
    wanted: Any = None,
    teacher_weight: float,
    temperature: float,
    transfer: Transfer = "kd",
    transfer_weight: float | None = None,
) -> Tensor:
    """The loss of one batch: against the targets, and where a teacher answered, against its answer.

    Args:
        outputs: of the network that learns; without a loss, logits or a mapping with `logits`.
        targets: of the data.
        loss: (outputs, targets) to a scalar; None is cross-entropy.
        wanted: outputs of the teacher; None for none.
        teacher_weight: share of the teacher's term in kd, in [0, 1].
        temperature: of kd, dkd and dist; a loss of one's own goes in kd with the mean squared distance of the outputs.
        transfer: what is learned from the teacher; only kd, dkd and dist learn from its outputs.
        transfer_weight: of the terms of dkd (that of the other classes) and dist; None for the authors' own.

    Raises:
        DataError: without a loss, outputs and targets are not those of a classification.
        ConfigError: dkd or dist for another task than classification; the loss is no function, or gives no scalar.
        ModelError: the outputs of the teacher count, and it has another number of classes.
    """
    if loss is None:
        outputs, wanted = logits_of(outputs), logits_of(wanted)
        require_logits(outputs, targets)
        targets = targets.long()
        if transfer in OUTPUT_TRANSFERS and isinstance(wanted, Tensor) and wanted.shape[1:] != outputs.shape[1:]:
            raise ModelError(
                f"the teacher has {wanted.shape[1]} classes, the model {outputs.shape[1]}; give them the same"
            )
    if loss is None and wanted is not None and transfer == "kd":
        return distillation_loss(outputs, wanted, targets, temperature=temperature, teacher_weight=teacher_weight)
    value = F.cross_entropy(wide(outputs), targets) if loss is None else _own_loss(loss, outputs, targets)
    if wanted is None or transfer not in OUTPUT_TRANSFERS:
        return value
    if transfer == "kd":
        return (1 - teacher_weight) * value + teacher_weight * _imitation(outputs, wanted)
    if loss is not None:  # otherwise it is one, and looking again would wait for the device again
        _require_classification(outputs, targets, transfer)
    outputs, wanted = logits_of(outputs), logits_of(wanted)
    weight = TRANSFER_WEIGHTS[transfer] if transfer_weight is None else transfer_weight
    if transfer == "dkd":
        return value + decoupled_loss(outputs, wanted, targets.long(), temperature=temperature, other_weight=weight)
    return value + weight * relation_loss(outputs, wanted, temperature=temperature)


def _own_loss(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    if isinstance(loss, type) or not callable(loss):
        raise ConfigError(f"loss= is {loss!r}; pass a function of (outputs, targets), such as nn.CrossEntropyLoss()")
    value = loss(outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"the loss must be a scalar tensor, but loss= returned {shape}; return its mean")
    return value


def _require_classification(outputs: Any, targets: Any, transfer: str) -> None:
    try:
        require_logits(logits_of(outputs), targets)
    except DataError as error:
        raise ConfigError(
            f"transfer {transfer} is for a classification with one label per sample; choose kd, hints or attention"
        ) from error


def _imitation(outputs: Any, wanted: Any) -> Tensor:
    ours, theirs = ([part for part in tensors_of(nest) if part.is_floating_point()] for nest in (outputs, wanted))
    pairs = list(zip(ours, theirs, strict=False))
    if not pairs or len(pairs) != len(ours) or any(one.shape != other.shape for one, other in pairs):
        raise ModelError(
            "the outputs of the network and of its teacher have no common shape to imitate; set teacher_weight to 0"
        )
    return torch.stack([imitation_loss(one, other) for one, other in pairs]).mean()


def logits_of(outputs: Any) -> Any:
    """What a classification is judged by: the outputs, or the `logits` among them.

    Hugging Face's models name them so in a mapping, torchvision's with auxiliary heads, while they train, in a tuple.
    """
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return found if isinstance(found, Tensor) else outputs


def accuracy(outputs: Any, targets: Any) -> float:
    """Percentage of right classes, as `right_classes` counts them; NaN where all are ignored.

    Raises:
        DataError: outputs and targets are not of this kind.
    """
    right, count = right_classes(outputs, targets)
    return 100 * right / count if count else math.nan


def right_classes(outputs: Any, targets: Any) -> tuple[int, int]:
    """How many labels are predicted, of how many; classes on the second dimension, one label per sample or pixel.

    Negative labels, and of pixels also those beyond the classes (often 255), mean "ignore".

    Raises:
        DataError: outputs and targets are not of this kind.
    """
    outputs = logits_of(outputs)
    if (
        not isinstance(outputs, Tensor)
        or outputs.dim() < 2
        or not _are_labels(targets)
        or targets.shape != outputs[:, 0].shape
    ):
        raise DataError("accuracy needs one score per class and one label per sample or pixel; give your own metric=")
    if outputs.dim() == 2:
        _require_classes(targets, outputs.shape[1])
    right, counted = right_and_counted(outputs, targets)
    return int(right), int(counted)


def right_and_counted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of `right_classes` where they were computed, without a wait for the device."""
    counts = (targets >= 0) & (targets < outputs.shape[1])  # the others are to be ignored
    return ((outputs.argmax(1) == targets) & counts).sum(), counts.sum()


def require_logits(outputs: Any, targets: Any) -> None:
    """Check that outputs and targets are those of a classification.

    Raises:
        DataError: a label lies beyond the model's classes, or the task is another one.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or not _are_labels(targets) or targets.dim() != 1:
        raise DataError(
            f"this is not a classification with one label per sample: the model answers with {described(outputs)}, the "
            f"targets are {described(targets)}; let it answer with a row of scores, give class numbers, or your own "
            f"loss= and metric="
        )
    _require_classes(targets, outputs.shape[1], ignored=IGNORED)


def _are_labels(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()


def _require_classes(targets: Tensor, classes: int, ignored: int | None = None) -> None:
    if targets.numel() == 0:
        return
    low, high = torch.stack(targets.aminmax()).tolist()  # one wait for the device
    if high >= classes:
        raise DataError(
            f"the data has a label {high}, the model only {classes} classes, 0 to {classes - 1}; number the classes "
            f"from 0, or build the model with the data's number of classes"
        )
    if ignored is not None and low < 0 and low != ignored:
        raise DataError(f"the data has a label {low}; number the classes from 0")


@torch.no_grad()
def require_fit_for_data(
    model: nn.Module,
    source: Source,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    transfer: Transfer = "none",
    layers: Sequence[str] = (),
    trains: bool = True,
) -> None:
    """Try a model, a loss and a metric on training images, before anything long begins.

    Args:
        model: the full one.
        source: gives the images.
        loss: (outputs, targets) to a scalar; None is cross-entropy.
        metric: (outputs, targets) to a number; None is the percentage of right classes.
        transfer: what a small network is to learn from the model.
        layers: of which it is to learn the features.
        trains: whether a model like this one will be trained.

    Raises:
        ModelError: the model does not accept them, answers with NaN, or cannot learn.
        DataError: there are none, or the labels are not those of its classes.
        ConfigError: the loss is not a scalar, the metric not a number, the transfer is for another task, or its
            layers do not exist or give no features.
    """
    require_trainable(model)
    device = str(next(model.parameters()).device)
    inputs, targets = next(iter(source.train_batches(2, device=device)), (None, None))
    if inputs is None or targets is None:
        raise DataError(f"{source.name} gives no training batch; give it more samples, or smaller batches")
    outputs = run_model(evaluating(model), inputs)
    if any(not bool(torch.isfinite(tensor).all()) for tensor in tensors_of(outputs)):
        reason = way_out_of_nan([(inputs, targets)], "check its weights for NaN")
        raise ModelError(f"the model's outputs are not finite on training images; {reason}")
    if transfer in FEATURE_TRANSFERS:
        match_layers(model, model, inputs, layers)
    _require_learnable(outputs, targets, source, loss, transfer)
    _require_number((metric or accuracy)(outputs, targets))
    if trains and len(inputs) > 1:  # while it trains, a model may answer in another form
        with own_randomness():
            outputs = _in_training(model, inputs)
        _require_learnable(outputs, targets, source, loss, transfer)


def _in_training(model: nn.Module, inputs: Tensor) -> Any:
    try:
        learner = copy.deepcopy(model)
        learner.train()
        return learner(inputs)
    except Exception as error:  # a forward may raise what it likes
        if "out of memory" in str(error):
            raise
        raise ModelError(
            f"{type(model).__name__} fails in training mode ({first_line(error)}); wrap it in a module that takes "
            f"images alone, and that can be copied"
        ) from error


@torch.no_grad()
def require_fit_for_test(model: nn.Module, source: Source, metric: Metric | None = None) -> None:
    """Try a model and a metric on a batch of the test set, of which only the form is looked at.

    Raises:
        ModelError: the model does not accept it.
        DataError: there is none, or the labels are not those of its classes.
        ConfigError: the metric is not a number.
    """
    with own_randomness():
        device = str(next(model.parameters()).device)
        inputs, targets = next(iter(source.test_batches(2, device=device)), (None, None))
    if inputs is None:
        raise DataError(f"{source.name} gives no test batch; give it more samples, or smaller batches")
    _require_number((metric or accuracy)(run_model(evaluating(model), inputs), targets))


def _require_learnable(outputs: Any, targets: Any, source: Source, loss: Loss | None, transfer: Transfer) -> None:
    if loss is None:
        outputs = logits_of(outputs)
        require_logits(outputs, targets)
        if source.num_classes is not None and source.num_classes > outputs.shape[1]:
            raise DataError(
                f"{source.name} has {source.num_classes} classes, the model only {outputs.shape[1]} classes; "
                f"build the model with the data's number of classes"
            )
    else:
        _own_loss(loss, outputs, targets)
    if transfer in ("dkd", "dist"):
        _require_classification(outputs, targets, transfer)


def _require_number(value: Any) -> None:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"metric= must give one number, but returned {kind}; return a batch's mean") from error
