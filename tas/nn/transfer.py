"""Knowledge transfer: losses that let a small network learn from the large one."""

from __future__ import annotations

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
    against_labels = F.cross_entropy(student_logits, labels)
    against_teacher = F.kl_div(
        F.log_softmax(student_logits / temperature, 1),
        F.log_softmax(teacher_logits.detach() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    # T² keeps the size of the teacher's gradient independent of the temperature
    return (1 - teacher_weight) * against_labels + teacher_weight * temperature**2 * against_teacher


def imitation_loss(student_outputs: Tensor, teacher_outputs: Tensor) -> Tensor:
    """Mean squared distance of the outputs: the teacher's term for tasks other than classification."""
    return F.mse_loss(student_outputs, teacher_outputs.detach())
