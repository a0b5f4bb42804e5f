"""Search the width of every layer and the depth of every stage."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.architecture import Architecture
from tas.budget import Amount, Budget
from tas.columns import columns
from tas.data import Batch, Source, as_source
from tas.data.augment import epoch_seed, own_randomness, seed_everything
from tas.data.sharding import sharded
from tas.distributed import copy_from_main, from_main, join
from tas.errors import ConfigError, RunError
from tas.nn.memory_format import channels_last
from tas.nn.modes import require_trainable, teaching
from tas.nn.statistics import average_statistics
from tas.nn.supernet import Supernet
from tas.nn.sync_batch_norm import synchronized_batch_norm
from tas.options import or_default
from tas.pipeline.search.config import LOGITS_TRAVEL, SearchConfig
from tas.pipeline.search.halving import Field, halve
from tas.pipeline.search.saliency import Judged, measured_saliency, saliency_logits
from tas.pipeline.search.steps import Steps, halves, random_logits, run_epoch
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
        architecture: the most probable one under the budget; after successive halving, its winner.
        scores: log-probability of every candidate; other budgets can be decoded from them without another search.
        record: one row per epoch, and of every round of successive halving.
    """

    architecture: Architecture
    scores: Scores
    record: Record

    def __repr__(self) -> str:
        """What the architecture costs, and every size before and after."""
        from tas.show import costs_text

        graph, rows = self.scores.graph, [("width or depth", "full", "found")]
        for full, found in (
            (graph.full.widths, self.architecture.widths),
            (graph.full.depths, self.architecture.depths),
        ):
            rows += [(name, f"{size:,}", f"{found[name]:,}") for name, size in full.items()]
        return f"SearchResult: {costs_text(graph, self.architecture)}\n\n{columns(rows)}"


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
    on the other, in turn, as in the paper. The most probable architecture under the budget is the result, or one of
    those that compete in successive halving: architectures of other depths and widths take turns in training the
    weights that they share, and round by round the worse ones go. Of several processes all must call it, and all get
    the same result.

    Args:
        supernet: changed in place; its space says what is searched.
        data: a source, or a pair of loaders (training, test); the test set is not touched.
        budget: upper bounds the result holds.
        config: see `SearchConfig`; its fragments, depth samples and interpolation take the place of the supernet's.
        teacher: gives soft labels when `config.teacher_weight` is above 0; a copy of it does, it is not changed.
        loss: (outputs, targets) to a scalar; cross-entropy by default.
        record: receives one row per epoch.
        checkpoint: file that holds the state after every epoch and round; the search goes on from it if it exists, and
            from the saliency in the record.
        scores: of a search of the same space for another budget: then neither saliency nor epochs run again, and
            successive halving decides, from the weights that the supernet has; without it, see `Scores.decode`.

    Raises:
        ConfigError: the scores are of another space.
        BudgetError: nothing in the space fits the budget, known before any step.
        ModelError: every parameter is frozen, or the model does not accept the inputs.
        DataError: the training set cannot be halved, or without a loss is not that of a classification.
        TrainingError: a loss became NaN or infinite.
        RunError: the checkpoint belongs to another search, or the record is not that of its run.
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
    competes = config.architectures > 1 and supernet.space.is_open
    given = copy.deepcopy(supernet.model.state_dict()) if competes and config.epochs and scores is None else None
    finished = restore_epoch(checkpoint, _identity(steps), steps.parts())
    if scores is None:
        scores = _scored(steps, source, record, home, checkpoint, finished)
    if not competes:
        return SearchResult(from_main(scores.decode)(budget), scores, record)
    if given and finished <= config.epochs:
        supernet.model.load_state_dict(given)  # the epochs move the logits; an architecture does better without them
    with own_randomness(home), channels_last(supernet, steps.teacher, precision=config.precision):
        found = _halved(steps, scores, source, budget, record, device, checkpoint, max(0, finished - config.epochs))
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
        batches = _judged(steps, source, device, config.held_out_images)
        with progress_bar("saliency", sum(len(sizes) - 1 for sizes in choices.values())) as bar:
            saliency = measured_saliency(supernet, batches, steps.objective, bar)
        record.add("search", part="saliency", seconds=_since(started), losses=saliency)
    with torch.no_grad():
        supernet.logits.copy_(saliency_logits(saliency, supernet.logits.shape[1]))


def _judged(steps: Steps, source: Source, device: str, images: int) -> list[Judged]:
    """Batches of the second half, with what the teacher says of them; the same every time."""
    config, batches, left = steps.config, [], images
    seed_everything(epoch_seed(config.seed, 0, 1))  # data sets of the user may draw from the global generators
    for inputs, targets in source.train_batches(config.batch_size, seed=config.seed, half=1, device=device):
        batches.append((inputs[:left], targets[:left], steps.answer(inputs[:left])))
        left -= len(inputs)
        if left <= 1:  # batch norms have no statistics of a single image
            break
    return batches


def _halved(
    steps: Steps,
    scores: Scores,
    source: Source,
    budget: Budget,
    record: Record,
    device: str,
    checkpoint: Path | None,
    finished: int,
) -> Architecture:
    """The winner of successive halving; every round is a row of the record. The supernet keeps the weights."""
    config, graph, own_share = steps.config, steps.supernet.graph, sharded(source)

    def tuning() -> Iterator[Batch]:
        """Batches of the first half, pass after pass."""
        for epoch in count():
            yield from own_share.train_batches(config.batch_size, seed=config.seed, epoch=epoch, half=0, device=device)

    rows = {row["round"]: row for row in record.rows if finished and row.get("part") == "halving"}
    if not all(number in rows for number in range(finished)):
        raise RunError("the record lacks rounds that the checkpoint has; delete the checkpoint to search anew")
    if finished == 0:
        steps.weights.state.clear()  # the momentum of the epochs
    field = Field(scores.log_probabilities, graph, steps.supernet.space, budget)
    entrants = field.first(config.architectures, config.seed)
    known = [rows[number]["losses"] for number in range(finished)]
    best, started = entrants[0], time.perf_counter()
    with progress_bar("halving", config.halving_steps, rows[finished - 1]["steps"] if finished else 0) as bar:
        judged = partial(_judged, steps, source, device)
        rounds = halve(entrants, field, steps, tuning=tuning, judged=judged, known=known, bar=bar)
        for number, found in enumerate(rounds):
            best = found.best
            if number < finished:
                continue
            record.add(
                "search", part="halving", round=number, steps=found.steps, images=found.images,
                seconds=_since(started), loss=found.losses[best], losses=list(found.losses.values()),
                macs=graph.macs(best), architecture=best.to_dict(),
            )  # fmt: skip
            _save(checkpoint, config.epochs + number + 1, steps)
            started = time.perf_counter()
    return best
