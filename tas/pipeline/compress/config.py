"""How the whole job runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tas.options import check_options, plain, split_patterns
from tas.pipeline.derive import Weights
from tas.pipeline.latency import LatencyConfig
from tas.pipeline.search import SearchConfig
from tas.pipeline.train import TrainConfig
from tas.space import SpaceConfig


def short_search() -> SearchConfig:
    """Search settings for a trained start: measured saliency, then successive halving. LOG.md says what was tried."""
    return SearchConfig(
        epochs=0, batch_size=64, start="trained", logits_start="saliency", held_out_images=128,
        architectures=96, halving_steps=100, halving_images=64, learning_rate=0.01,
        depth_samples="drawn", interpolation="none", logits_learning_rate="auto", logits_weight_decay=0.0,
        temperature_start=5.0, temperature_end=0.5, teacher_weight=0.9,
    )  # fmt: skip


def short_train() -> TrainConfig:
    """Training settings for inherited weights."""
    return TrainConfig(epochs=30, warmup_epochs=1, batch_size=64, learning_rate=0.01)


def short_teacher() -> TrainConfig:
    """Training settings for a teacher of one's own."""
    return TrainConfig(epochs=20, warmup_epochs=1, batch_size=64, learning_rate=0.1)


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """How the whole job runs; the defaults are short, for a trained start.

    Attributes:
        search: see `SearchConfig`.
        train: see `TrainConfig`; of the small network.
        teacher: see `TrainConfig`; of the full model, when it has to be trained first.
        space: see `SpaceConfig`; which sizes may be chosen.
        keep: modules to leave alone, as in `trace`.
        residuals: tied or free, as in `trace`.
        execution: of the supernet; both compute the same, compact is faster on a CPU.
        init: the small network inherits the ranked channels of the full one; inherits them and is fitted, layer by
            layer, to what these made of training images (reconstruct); averages neighbouring channels of the full one
            (interpolate); or starts fresh as in the paper.
        latency_batch: samples in the timed forward pass.
        latency: see `LatencyConfig`; how it is predicted where a budget bounds it.
        seed: takes the place of every stage's own seed.
    """

    search: SearchConfig = field(default_factory=short_search)
    train: TrainConfig = field(default_factory=short_train)
    teacher: TrainConfig = field(default_factory=short_teacher)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    keep: tuple[str, ...] = ()
    residuals: Literal["tied", "free"] = "tied"
    execution: Literal["compact", "dense"] = "compact"
    init: Weights = "reconstruct"
    latency_batch: int = 1
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    seed: int = 0

    def __post_init__(self):
        check_options(self, "compress", above_zero=("latency_batch",))
        self.search.require_fit_for(self.execution)
        for stage in ("search", "train", "teacher"):
            object.__setattr__(self, stage, replace(getattr(self, stage), seed=self.seed))
        object.__setattr__(self, "keep", split_patterns(self.keep))

    def to_dict(self) -> dict[str, Any]:
        """As options of the command line and of YAML files: one seed rules all stages."""
        options = plain(self)
        for stage in ("search", "train", "teacher"):
            options[stage].pop("seed")
        return options
