"""The losses against a teacher, as formulas: from outputs, and from the features of one layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tas.errors import ConfigError


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    teacher_weight: float = 0.9,
) -> Tensor:
    """Mix the loss against the labels with the loss against a teacher.

    Args:
        student_logits: (batch, classes), before softmax; the only argument gradients flow to.
        teacher_logits: (batch, classes), before softmax; constants.
        labels: (batch,), class indices.
        temperature: softens both distributions; > 0, 1 leaves them as they are.
        teacher_weight: share of the teacher's term, in [0, 1].

    Returns:
        Mean over the batch, in nats.

    Raises:
        ConfigError: `temperature` or `teacher_weight` is out of range.

    Source:
        Hinton, Vinyals and Dean, 2015, section 2, https://arxiv.org/abs/1503.02531; weights of Dong and Yang, 2019.
    """
    if temperature <= 0 or not 0 <= teacher_weight <= 1:
        raise ConfigError(
            f"temperature is {temperature} and teacher_weight {teacher_weight}; they must be above 0, and in [0, 1]"
        )
    student_logits, teacher_logits = wide(student_logits), wide(teacher_logits)
    against_labels = F.cross_entropy(student_logits, labels)
    against_teacher = F.kl_div(
        F.log_softmax(student_logits / temperature, 1),
        F.log_softmax(teacher_logits.detach() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    # T² keeps the size of the teacher's gradient independent of the temperature
    return (1 - teacher_weight) * against_labels + teacher_weight * temperature**2 * against_teacher


def decoupled_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    other_weight: float = 2.0,
) -> Tensor:
    """The teacher's term of distillation, split into the right class against the rest, and the rest among itself.

    In plain distillation the second part is multiplied by what probability the teacher leaves to the rest, so that a
    confident teacher hides what it knows about the other classes.

    Args:
        student_logits: (batch, classes), before softmax; the only argument gradients flow to.
        teacher_logits: (batch, classes), before softmax; constants.
        labels: (batch,), class indices; samples with a negative one are left out.
        temperature: softens all distributions; > 0.
        other_weight: β before the part of the other classes; that of the right class has weight 1. The authors take 2
            between CIFAR ResNets, up to 8 for wider ones, and 0.5 with temperature 1 on ImageNet.

    Returns:
        Mean over the batch, in nats, times temperature².

    Source:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7, https://arxiv.org/abs/2203.08679.
    """
    student_logits, teacher_logits = wide(student_logits), wide(teacher_logits)
    known, wanted = labels >= 0, labels.clamp_min(0)[:, None]
    others = torch.arange(student_logits.shape[1] - 1, device=labels.device)  # by index: a mask waits for the device
    others = others + (others >= wanted)
    right, rest = [], []
    for logits in (student_logits, teacher_logits.detach()):
        logs = F.log_softmax(logits / temperature, 1)
        other_logs = logs.gather(1, others)
        right.append(torch.cat([logs.gather(1, wanted), other_logs.logsumexp(1, keepdim=True)], 1))
        rest.append(F.log_softmax(other_logs, 1))
    target_part, other_part = (F.kl_div(*pair, reduction="none", log_target=True).sum(1) for pair in (right, rest))
    return temperature**2 * (target_part + other_weight * other_part).where(known, 0).sum() / known.sum()


def relation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """One minus the correlation of the probabilities: over the classes of a sample, plus over the samples of a class.

    A student that is too small to match the probabilities of a strong teacher can still rank as it does.

    Args:
        student_logits: (batch, classes), before softmax; the only argument gradients flow to.
        teacher_logits: (batch, classes), before softmax; constants.
        temperature: softens both distributions; > 0.

    Returns:
        Mean over samples plus mean over classes, each in [0, 2], times temperature².

    Source:
        Huang et al., "Knowledge Distillation from A Stronger Teacher" (DIST), NeurIPS 2022, section 4,
        https://arxiv.org/abs/2205.10536; temperature² as in the authors' code.
    """
    both = wide(student_logits), wide(teacher_logits.detach())
    ours, theirs = (F.softmax(logits / temperature, 1) for logits in both)
    within_samples, within_classes = (1 - _correlation(ours, theirs, dim).mean() for dim in (1, 0))
    return temperature**2 * (within_samples + within_classes)


def _correlation(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's; 0 where one side is constant."""
    return F.cosine_similarity(one - one.mean(dim, keepdim=True), other - other.mean(dim, keepdim=True), dim)


def imitation_loss(student_outputs: Tensor, teacher_outputs: Tensor) -> Tensor:
    """Mean squared distance of the outputs: the teacher's term for tasks other than classification."""
    return F.mse_loss(wide(student_outputs), wide(teacher_outputs.detach()))


def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared distance of the features of one layer.

    Args:
        student_features: (batch, channels, height, width) or (batch, tokens, channels), brought to the teacher's
            channels by a regressor; the only argument gradients flow to.
        teacher_features: of the same shape; constants.

    Returns:
        Mean over all elements, where the paper has half the sum: so the weight does not depend on the layer's size.

    Source:
        Romero et al., "FitNets", ICLR 2015, equation 3, https://arxiv.org/abs/1412.6550.
    """
    return F.mse_loss(wide(student_features), wide(teacher_features.detach()))


def attention_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Distance of two attention maps: where the features of one layer are large, whatever the number of channels.

    Args:
        student_features: (batch, channels, height, width) or (batch, tokens, channels); the only argument gradients
            flow to.
        teacher_features: the same but for the channels, which may be more; constants.

    Returns:
        Squared distance of the maps, each of Euclidean length 1, as a mean over batch and positions. The fewer the
        positions, the larger it is: maps of a few pixels want a small weight.

    Source:
        Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2 with p = 2,
        https://arxiv.org/abs/1612.03928; the distance squared, as in the authors' code.
    """
    return F.mse_loss(_attention_map(student_features), _attention_map(teacher_features.detach()))


def _attention_map(features: Tensor) -> Tensor:
    channels = 1 if features.dim() == 4 else -1
    return F.normalize(wide(features).square().mean(channels).flatten(1), dim=1)


def wide(values: Tensor) -> Tensor:
    """At least float32: squares of half precision overflow, and on a CPU autocast leaves logarithms to it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
