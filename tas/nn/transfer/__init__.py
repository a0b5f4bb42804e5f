"""Knowledge transfer: losses that let a small network learn from the large one."""

from tas.nn.transfer.features import Attention, Hints, Match, match_layers, recorded, require_layers
from tas.nn.transfer.losses import (
    attention_loss,
    decoupled_loss,
    distillation_loss,
    hint_loss,
    imitation_loss,
    relation_loss,
    wide,
)

__all__ = [
    "Attention", "Hints", "Match", "attention_loss", "decoupled_loss", "distillation_loss", "hint_loss",
    "imitation_loss", "match_layers", "recorded", "relation_loss", "require_layers", "wide",
]  # fmt: skip
