"""Search the width of every layer and the depth of every stage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.data import Batch, Source, as_source
from tas.data.augment import own_randomness
from tas.data.sharding import sharded
from tas.distributed import accelerator, copy_from_main, from_main, num_processes, process_index
from tas.errors import ConfigError
from tas.nn.memory_format import channels_last
from tas.nn.statistics import average_statistics
from tas.nn.supernet import Supernet
from tas.nn.sync_batch_norm import synchronized_batch_norm
from tas.pipeline.search.config import LOGITS_TRAVEL, SearchConfig
from tas.pipeline.search.finalists import Trials, climb, run_off
from tas.pipeline.search.saliency import measured_saliency, saliency_logits
from tas.pipeline.search.steps import Steps, halves, random_logits, run_epoch
from tas.progress import progress_bar
from tas.record import Record
from tas.scores import Scores
from tas.storage import restore_epoch, save_epoch
from tas.task import Loss, require_trainable

__all__ = ["LOGITS_TRAVEL", "SearchConfig", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        architecture: the most probable one under the budget; with trials, the best of those tried.
        scores: log-probability of every candidate; other budgets can be decoded from them without another search.
        record: one row per epoch, and of every trial.
    """

    architecture: Architecture
    scores: Scores
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
    scores: Scores | None = None,
) -> SearchResult:
    """Find the sizes of a network under a budget.

    As `config` says: the logits begin at random, or where the losses of the trained model point when a width or depth
    alone is cut (saliency). For some epochs the supernet's weights learn on one half of the training set and its logits
    on the other, in turn, as in the paper. The most probable architecture under the budget is the result, or the start
    of a few trials: architectures with other depths, each tuned for some steps before their losses are compared. Of
    several processes all must call it, and all get the same result.

    Args:
        supernet: changed in place; its space says what is searched.
        data: a source, or a pair of loaders (training, test); the test set is not touched.
        budget: upper bounds the result holds.
        config: see `SearchConfig`; its fragments, depth samples and interpolation take the place of the supernet's.
        teacher: gives soft labels when `config.teacher_weight` is above 0.
        loss: (outputs, targets) to a scalar; cross-entropy by default.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch; the search goes on from it if it exists, and from the
            saliency and trials in the record.
        scores: of a search of the same space for another budget: then neither saliency nor epochs run again, and the
            trials decide, with the weights that the supernet has; without trials, see `Scores.decode`.

    Raises:
        ConfigError: the scores are of another space.
        BudgetError: nothing in the space fits the budget, known before any step.
        ModelError: every parameter is frozen, or the model does not accept the inputs.
        DataError: the training set cannot be halved, or without a loss is not that of a classification.
        TrainingError: a loss became NaN or infinite.
        RunError: the checkpoint belongs to another search.
    """
    config, record = config or SearchConfig(), record if record is not None else Record()
    budget, source = Budget.of(budget), as_source(data)
    budget.require_reachable(supernet.graph, supernet.space)
    require_trainable(supernet.model)
    home = accelerator().device
    device, devices = str(home), [home] if home.type == "cuda" else []
    if scores is not None and scores.space != supernet.space:
        raise ConfigError("the scores are of another search space; give those of a search of this supernet's space")
    if config.start == "scratch":
        supernet.reset_weights(config.seed)
    supernet.fragments, supernet.depth_samples = config.fragments, config.depth_samples
    supernet.interpolation = config.interpolation
    supernet.to(device)
    pairs = halves(sharded(source), config, 0, device)[2]
    helper = teacher.to(device).eval() if teacher is not None else None
    copy_from_main(supernet, helper)
    steps = Steps(supernet, budget, config, helper, loss, max(1, pairs * config.epochs))
    inherited = supernet.collapse(supernet.space.largest) if config.trials > 1 else None
    if scores is None:
        scores = _scored(steps, source, record, device, devices, checkpoint)
    if inherited is None:
        return SearchResult(from_main(scores.decode)(budget), scores, record)
    chosen = _tried(steps, inherited, scores, source, budget, record, device, resumes=checkpoint is not None)
    return SearchResult(chosen, scores, record)


def _scored(
    steps: Steps, source: Source, record: Record, device: str, devices: list[Any], checkpoint: Path | None
) -> Scores:
    """Saliency and alternation, as far as the config asks for them: what is known of every candidate afterwards."""
    config, supernet = steps.config, steps.supernet
    own_share, options = sharded(source), json.dumps(asdict(config))
    pairs = halves(own_share, config, 0, device)[2]
    with own_randomness(devices), channels_last(supernet, steps.teacher, precision=config.precision):
        _start_logits(steps, source, record, device, resumes=checkpoint is not None)
        first = restore_epoch(checkpoint, options, steps.parts())
        with (
            progress_bar("search", pairs * config.epochs, pairs * first) as bar,
            synchronized_batch_norm(config.sync_batch_norm),
        ):
            for epoch in range(first, config.epochs):
                started = time.perf_counter()
                row = run_epoch(steps, own_share, epoch, device, bar)
                average_statistics(supernet)
                record.add("search", epoch=epoch, seconds=_since(started), **row)
                if checkpoint:
                    save_epoch(checkpoint, epoch + 1, options, steps.parts())
    return Scores(supernet.scores(), supernet.graph, supernet.space)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _start_logits(steps: Steps, source: Source, record: Record, device: str, *, resumes: bool) -> None:
    """Where the logits begin; what an interrupted search has measured is not measured again.

    A record alone may be of other searches too: only a run, which has a checkpoint, is known to be the same.
    """
    config, supernet = steps.config, steps.supernet
    if config.logits_start == "random":
        random_logits(supernet, config.seed)
        return
    choices = {**supernet.space.widths, **supernet.space.depths}
    known = [row["losses"] for row in record.rows if resumes and row.get("part") == "saliency"]
    if known and {name: len(row) for name, row in known[-1].items()} == {name: len(v) for name, v in choices.items()}:
        saliency = {name: known[-1][name] for name in choices}
    else:
        started = time.perf_counter()
        batches = list(_held_out(source, config, config.held_out_images, device)())
        with progress_bar("saliency", sum(len(sizes) - 1 for sizes in choices.values())) as bar:
            saliency = measured_saliency(supernet, batches, steps.objective, bar)
        record.add("search", part="saliency", seconds=_since(started), losses=saliency)
    with torch.no_grad():
        supernet.logits.copy_(saliency_logits(saliency, supernet.logits.shape[1]))


def _held_out(source: Source, config: SearchConfig, images: int, device: str) -> Callable[[], Iterator[Batch]]:
    """Batches of the second half, the same every time."""

    def read() -> Iterator[Batch]:
        """The batches, the last cut to what is left."""
        left = images
        for inputs, targets in source.train_batches(config.batch_size, seed=config.seed, half=1, device=device):
            yield inputs[:left], targets[:left]
            left -= len(inputs)
            if left <= 0:
                return

    return read


def _tried(
    steps: Steps,
    inherited: nn.Module,
    scores: Scores,
    source: Source,
    budget: Budget,
    record: Record,
    device: str,
    *,
    resumes: bool,
) -> Architecture:
    """The best of a few architectures that were tuned for some steps, each a row of the record."""
    config, graph, space = steps.config, steps.supernet.graph, steps.supernet.space
    own_share = sharded(source)
    held_out = _held_out(source, config, config.trial_images, device)

    rows = [row for row in record.rows if resumes and row.get("part") == "trial"]  # of an interrupted start

    def trials_of(length: int) -> Trials:
        """Trials of so many steps."""

        def tuning() -> Iterator[Batch]:
            """As many batches of the first half, pass after pass."""
            epochs = (
                own_share.train_batches(config.batch_size, seed=config.seed, epoch=e, half=0, device=device)
                for e in count()
            )
            return islice(chain.from_iterable(epochs), length)

        return Trials(
            inherited, graph, tuning, lambda: islice(held_out(), process_index(), None, num_processes()),
            steps.objective, steps=length, learning_rate=config.learning_rate, momentum=config.momentum,
            weight_decay=config.weight_decay, seed=config.seed,
            known={Architecture(**row["architecture"]): row["loss"] for row in rows if row.get("steps") == length},
        )  # fmt: skip

    short, long = trials_of(config.trial_steps), trials_of(config.final_steps)
    best, started = None, time.perf_counter()
    with (
        channels_last(inherited, steps.teacher, precision=config.precision),
        progress_bar("trials", config.trials + (config.finalists if config.finalists > 1 else 0)) as bar,
        synchronized_batch_norm(config.sync_batch_norm),
    ):
        climbing = climb(scores.log_probabilities, graph, space, budget, short, config.trials)
        for best in chain(climbing, run_off(short, long, config.finalists)):
            trials = long if long.losses else short
            if not trials.losses:
                continue
            tried, value = list(trials.losses.items())[-1]
            if tried not in trials.known:
                record.add(
                    "search", part="trial", steps=trials.steps, seconds=_since(started), loss=value,
                    best=trials.losses[best], macs=graph.macs(tried),
                    architecture={"widths": dict(tried.widths), "depths": dict(tried.depths)},
                )  # fmt: skip
            started = time.perf_counter()
            bar.advance(f"best loss {trials.losses[best]:.4f}")
    assert best is not None
    return best
