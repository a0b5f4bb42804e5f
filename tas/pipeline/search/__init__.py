"""Search the width of every layer and the depth of every stage."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.data import Source, as_source
from tas.data.augment import own_randomness
from tas.data.batches import way_out_of_nan
from tas.data.sharding import sharded
from tas.distributed import copy_from_main, from_main, join
from tas.errors import ConfigError, RunError, TrainingError
from tas.nn.memory_format import channels_last
from tas.nn.modes import evaluating, require_trainable, teaching
from tas.nn.statistics import average_statistics
from tas.nn.supernet import Supernet
from tas.nn.sync_batch_norm import synchronized_batch_norm
from tas.options import or_default
from tas.pipeline.search.belief import NOT_FINITE
from tas.pipeline.search.config import FINALISTS, LOGITS_TRAVEL, SearchConfig
from tas.pipeline.search.saliency import HINT, measured_saliency, saliency_logits
from tas.pipeline.search.steps import Steps, halves, random_logits, run_epoch
from tas.pipeline.search.trials import Bench, rounds_of
from tas.progress import progress_bar
from tas.record import Record
from tas.scores import Scores
from tas.storage import restore_epoch, save_epoch
from tas.task import Loss, warn_of_slow_precision

__all__ = ["LOGITS_TRAVEL", "SearchConfig", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        architecture: the most probable one under the budget; after trials, the best that was tried.
        scores: log-probability of every candidate; other budgets can be decoded from them without another search.
        record: one row per epoch, and of every round of trials.
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
    on the other, in turn, as in the paper. The most probable architecture under the budget is the result, or the best
    of some trials: networks that the scores ask for, cut from the weights given, fitted to them layer by layer and
    judged on held-out images, from which the scores learn what to ask for next. Of several processes all must call it,
    and all get the same result.

    Args:
        supernet: changed in place; its space says what is searched.
        data: a source, or a pair of loaders (training, test); the test set is not touched.
        budget: upper bounds the result holds.
        config: see `SearchConfig`; its fragments, depth samples and interpolation take the place of the supernet's.
        teacher: gives soft labels when `config.teacher_weight` is above 0; a copy of it does, it is not changed.
        loss: (outputs, targets) to a scalar; cross-entropy by default.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch; the search goes on from it if it exists, and from the
            saliency and the trials in the record.
        scores: of a search of the same space for another budget: then neither saliency nor epochs run again, and trials
            decide, with the weights that the supernet has; without them, see `Scores.decode`.

    Raises:
        ConfigError: the scores are of another space.
        BudgetError: nothing in the space fits the budget, known before any step.
        ModelError: every parameter is frozen, or the model does not accept the inputs.
        DataError: the training set cannot be halved, or without a loss is not that of a classification.
        TrainingError: a loss became NaN or infinite.
        RunError: the checkpoint belongs to another search, or the trials of the record do.
    """
    config, record = or_default(config, SearchConfig), record if record is not None else Record()
    budget, source = Budget.of(budget), as_source(data)
    budget.require_reachable(supernet.graph, supernet.space)
    require_trainable(supernet.model)
    home = join()
    warn_of_slow_precision(config.precision, home.type)
    device = str(home)
    if scores is not None and scores.space != supernet.space:
        raise ConfigError("the scores are of another search space; give those of a search of this supernet's space")
    if config.start == "scratch":
        supernet.reset_weights(config.seed)
    supernet.fragments, supernet.depth_samples = config.fragments, config.depth_samples
    supernet.interpolation = config.interpolation
    supernet.to(device)
    pairs = halves(sharded(source), config, 0, device)[2]
    helper = teaching(teacher, device) if teacher is not None and config.teacher_weight else None
    copy_from_main(supernet, helper)
    steps = Steps(supernet, budget, config, helper, loss, max(1, pairs * config.epochs))
    full = None
    if config.trials and supernet.space.is_open:
        full = evaluating(supernet.collapse(supernet.space.largest))  # with the weights given; epochs change them
    resumes = checkpoint is not None and from_main(checkpoint.exists)()
    finished = restore_epoch(checkpoint, _identity(steps), steps.parts())
    if scores is None:
        scores = _scored(steps, source, record, home, checkpoint, finished)
    if full is None:
        return SearchResult(from_main(scores.decode)(budget), scores, record)
    with own_randomness(home):
        found = _tried(full, steps, scores, source, budget, record, device, checkpoint, resumes=resumes)
    return SearchResult(found, scores, record)


def _scored(
    steps: Steps, source: Source, record: Record, home: torch.device, checkpoint: Path | None, finished: int
) -> Scores:
    """Saliency and alternation, as far as the config asks for them: what is known of every candidate afterwards."""
    config, supernet, device = steps.config, steps.supernet, str(home)
    own_share = sharded(source)
    pairs = halves(own_share, config, 0, device)[2]
    with own_randomness(home), channels_last(supernet, steps.teacher, precision=config.precision):
        if not finished:
            _start_logits(steps, source, record, device, resumes=checkpoint is not None)
        first = min(finished, config.epochs)
        with (
            progress_bar("search", pairs * config.epochs, pairs * first) as bar,
            synchronized_batch_norm(config.sync_batch_norm),
        ):
            for epoch in range(first, config.epochs):
                started = time.perf_counter()
                row = run_epoch(steps, own_share, epoch, device, bar)
                average_statistics(supernet)
                record.add("search", epoch=epoch, seconds=_since(started), **row)
                _save(checkpoint, epoch + 1, steps)
    return Scores(supernet.scores(), supernet.graph, supernet.space)


def _save(checkpoint: Path | None, finished: int, steps: Steps) -> None:
    if checkpoint:
        save_epoch(checkpoint, finished, _identity(steps), steps.parts())


def _identity(steps: Steps) -> str:
    """What a search must have in common with the one whose checkpoint it goes on from."""
    return json.dumps({**asdict(steps.config), "limits": steps.limits})


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
    choices = supernet.space.choices
    known = [row["losses"] for row in record.rows if resumes and row.get("part") == "saliency"]
    if known and {name: len(row) for name, row in known[-1].items()} == {name: len(v) for name, v in choices.items()}:
        saliency = {name: known[-1][name] for name in choices}
    else:
        started = time.perf_counter()
        batches = steps.held_out(source, device, config.held_out_images)
        with progress_bar("saliency", sum(len(sizes) - 1 for sizes in choices.values())) as bar:
            saliency = measured_saliency(supernet, batches, steps.objective, bar)
        record.add("search", part="saliency", seconds=_since(started), losses=saliency)
    with torch.no_grad():
        supernet.logits.copy_(saliency_logits(saliency, supernet.logits.shape[1]))


def _tried(
    full: nn.Module,
    steps: Steps,
    scores: Scores,
    source: Source,
    budget: Budget,
    record: Record,
    device: str,
    checkpoint: Path | None,
    *,
    resumes: bool,
) -> Architecture:
    """The best of the trials; a round is a row of the record, and known again where the checkpoint is there."""
    config, graph, space = steps.config, steps.supernet.graph, steps.supernet.space
    rows = {row["round"]: row for row in record.rows if resumes and row.get("part") == "trials"}
    known = [rows[number]["losses"] for number in range(len(rows))]
    if not known:
        _save(checkpoint, config.epochs, steps)  # says whose the trials of the record will be
    bench = Bench(full, graph, source, steps, device)
    with progress_bar("trials", config.trials + FINALISTS, sum(map(len, known))) as bar:
        rounds = rounds_of(
            scores.log_probabilities, graph, space, budget, partial(bench.losses, bar=bar),
            count=config.trials, seed=config.seed, known=known,
        )  # fmt: skip
        started = time.perf_counter()
        for number, found in enumerate(rounds):
            if found.loss >= NOT_FINITE:
                raise TrainingError(f"no loss of a trial is finite; {way_out_of_nan(bench.read, HINT)}")
            if number < len(known):
                if found.best.to_dict() != rows[number]["architecture"]:
                    raise RunError("the record is of another search; move it away to search anew")
            else:
                record.add(
                    "search", part="trials", round=number, images=bench.images, seconds=_since(started),
                    loss=found.loss, losses=list(found.losses.values()),
                    macs=graph.macs(found.best), architecture=found.best.to_dict(),
                )  # fmt: skip
            started = time.perf_counter()
    return found.best
