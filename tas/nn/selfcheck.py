"""Numerical proof that cutting a model computes what masking it computes; what fails is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.errors import ModelError, first_line
from tas.graph import Attribute, Graph
from tas.nn.compared import checked_numbers, compared_numbers
from tas.nn.cuts import (
    architectures_alike,
    architectures_like_others,
    architectures_to_try,
    cut_only,
    cut_to,
    halved,
    sizes_compared,
    small,
)  # fmt: skip
from tas.nn.freeze import without, without_size
from tas.nn.importance import ranked
from tas.nn.outputs import DIFFERS, difference, no_fast_path, run, shows_something
from tas.nn.perturb import calibrate, noise_like, perturbed, tokens_like
from tas.nn.supernet import Supernet
from tas.nn.surgery import cut, fresh_copy, mask, shared_copy
from tas.space import SearchSpace

Execution = Literal["dense", "compact"]  # of the supernet
EXECUTIONS: tuple[Execution, ...] = ("dense", "compact")
_NOTHING_TO_SEE = "the outputs of the model are not finite, or nothing but zeros, so that no cut can be proven"
_AS_MANY = "cut to as many channels as others"
_ORDER_TOLERANCE = 1e-3  # at full size much is summed, in whatever order
_ROUNDS = 3  # of looking for what fails in a trial of many sizes


def self_check(
    model: nn.Module,
    graph: Graph,
    example: Sequence[Tensor],
    seed: int = 0,
    numbers: Callable[[], Sequence[Attribute]] = tuple,
) -> Graph:
    """Cut a few architectures and compare; freeze exactly the widths and depths that fail.

    Args:
        model: in evaluation mode; not changed.
        graph: as the rules see it.
        example: inputs of `forward`; their values do not matter.
        seed: of the perturbed weights and the random architecture.
        numbers: gives those on modules that may have to follow widths, tried where the graph fails without them.

    Returns:
        The graph, with what failed frozen and the reason given.

    Raises:
        ModelError: the model itself fails on the example.
    """
    witness = _Witness.find(model, example, torch.Generator().manual_seed(seed))
    if witness is None:
        names = [*graph.full.widths, *graph.full.depths]
        return _without_all(graph, names, _NOTHING_TO_SEE)
    graph = _proven(witness, graph, seed, numbers)
    graph = _without_numbers_that_stay(witness, graph, seed)
    for trial in architectures_alike(graph):
        if witness.failure(graph, [trial], ()) is not None:
            graph = _without_culprits(witness, graph, trial, _AS_MANY)
    for trial in architectures_like_others(graph):
        if witness.failure(graph, [trial], ()) is not None:
            single = _failing(witness, graph, [*graph.full.widths], trial)
            for name in single:
                graph = without_size(graph, name, trial.widths[name])
            together = cut_only(graph, graph.full.widths.keys() - single.keys(), trial)
            graph = _without_culprits(witness, graph, together, _AS_MANY)
    return graph


def _without_numbers_that_stay(witness: _Witness, graph: Graph, seed: int) -> Graph:
    """The graph without numbers that need not follow a width: with others a forward might take another way."""
    for compared in compared_numbers(witness.model, graph, witness.inputs) if graph.attributes else ():
        fewer = replace(graph, attributes=tuple(item for item in graph.attributes if item not in compared))
        followed = {name for item in compared for name, _ in item.count.widths}
        if witness.failure(fewer, [halved(fewer, followed), *architectures_to_try(fewer, seed)]) is None:
            graph = fewer
            continue
        for name, size in sizes_compared(graph, compared):
            if witness.failure(graph, [cut_to(graph, {name: size})]) is not None:
                graph = without_size(graph, name, size)
    return graph


def _proven(witness: _Witness, graph: Graph, seed: int, numbers: Callable[[], Sequence[Attribute]]) -> Graph:
    """The graph without what fails."""
    names = [*graph.full.widths, *graph.full.depths]
    if witness.failure(graph, architectures_to_try(graph, seed)) is None:
        return graph
    failing = _failing(witness, graph, names, small(graph))
    more = checked_numbers(witness.model, graph, numbers(), witness.inputs)
    if more is not graph:
        fewer = _failing(witness, more, names, small(graph))
        graph, failing = (more, fewer) if len(fewer) < len(failing) else (graph, failing)
    graph, failing = _without_numbers_by_chance(witness, graph, failing)
    for name, reason in failing.items():
        graph = without(graph, name, reason)
    if witness.failure(graph, architectures_to_try(graph, seed)) is None:
        return graph
    graph = _without_culprits(witness, graph, small(graph), "cut together with other groups")
    for _ in range(_ROUNDS):
        failed = next(
            (trial for trial in architectures_to_try(graph, seed) if witness.failure(graph, [trial], EXECUTIONS)), None
        )
        if failed is None:
            return graph
        graph = _without_culprits(witness, graph, failed, "cut to some sizes")
    reason = witness.failure(graph, architectures_to_try(graph, seed))
    if reason is not None:  # nothing can be promised
        graph = _without_all(graph, [*graph.full.widths, *graph.full.depths], f"cut to some sizes, {reason}")
    return graph


def _without_numbers_by_chance(
    witness: _Witness, graph: Graph, failing: dict[str, str]
) -> tuple[Graph, dict[str, str]]:
    """The graph without numbers, of a window or an image, that equal a width by chance, and what still fails then."""
    suspects = [item for item in graph.attributes if any(name in failing for name, _ in item.count.widths)]
    modules = dict.fromkeys(item.module for item in suspects)
    together = [[item for item in suspects if item.module == path] for path in modules]
    for dropped in [*together, *([item] for item in suspects if [item] not in together)]:
        names = {name for item in dropped for name, _ in item.count.widths}
        if names.isdisjoint(failing):
            continue
        fewer = replace(graph, attributes=tuple(item for item in graph.attributes if item not in dropped))
        left = _failing(witness, fewer, sorted(names), small(graph))
        if len(left) < len(names & failing.keys()):
            graph, failing = fewer, {name: failing[name] for name in failing if name not in names} | left
    return graph, failing


def _without_culprits(witness: _Witness, graph: Graph, trial: Architecture, how: str) -> Graph:
    """The graph without the groups with which it fails where those before them are cut to the sizes of a trial, too.

    How many can be cut together is found by halving: mostly one or two groups are to blame, of hundreds. Where there
    are more, the next one often is (the same layer of the next block), and looked at first.
    """
    names, good, guess = [*graph.full.widths, *graph.full.depths], 0, 0

    def failing(count: int) -> str | None:
        return witness.failure(graph, [cut_only(graph, set(names[:count]), trial)], EXECUTIONS)

    while good < len(names) and (reason := failing(bad := len(names))) is not None:
        while bad - good > 1:
            middle, guess = guess or (good + bad) // 2, 0
            found = failing(middle)
            good, bad, reason = (middle, bad, reason) if found is None else (good, middle, found)
        graph = without(graph, names[good], f"{how}, {reason}")
        good += 1
        guess = good + 1
    return graph


def _failing(witness: _Witness, graph: Graph, names: Sequence[str], trial: Architecture) -> dict[str, str]:
    """Reason by name of every group that fails when cut alone as in a trial; halves that pass are not looked into."""
    reason = witness.failure(graph, [cut_only(graph, set(names), trial)], EXECUTIONS) if names else None
    if reason is None:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    middle = len(names) // 2
    return _failing(witness, graph, names[:middle], trial) | _failing(witness, graph, names[middle:], trial)


def _without_all(graph: Graph, names: Sequence[str], reason: str) -> Graph:
    for name in names:
        graph = without(graph, name, reason)
    return graph


@dataclass(frozen=True)
class _Witness:
    """A model with inputs on which it runs, to compare cut models with.

    Attributes:
        model: in evaluation mode, with perturbed weights where those give finite outputs.
        inputs: of its forward.
        outputs: what it makes of them.
    """

    model: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]

    @classmethod
    def find(cls, model: nn.Module, example: Sequence[Tensor], generator: torch.Generator) -> _Witness | None:
        """None where no outputs are finite and more than zeros."""
        noise = [noise_like(tensor, generator) for tensor in example]
        few, noisy = [tensor[:2] for tensor in noise], perturbed(model, generator)
        rows = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
        tokens = [[tokens_like(tensor, min(rows), generator) for tensor in few]] if rows else []
        if not any(calibrate(noisy, inputs) for inputs in (*tokens, few)):
            calibrate(noisy, [torch.cat([one, noise_like(one, generator)]) for one in few])
        trials = [(noisy, inputs) for inputs in (*tokens, few, noise)]
        trials += [(model, inputs) for inputs in (few, noise, list(example))]
        error = None
        for trial, inputs in trials:
            try:
                outputs = run(trial, inputs)
            except Exception as failure:  # the user's own forward may fail in any way
                error = failure
                continue
            error = None
            if shows_something(outputs):
                return cls(trial, inputs, outputs)
        if error is not None:
            raise ModelError(f"{type(model).__name__} fails on the example: {first_line(error)}") from error
        return None

    @cached_property
    def in_double(self) -> _Witness | None:
        """The same in double precision; None where the model does not run in it, or this is it."""
        if all(tensor.dtype == torch.double for tensor in self.outputs):
            return None
        try:
            model = fresh_copy(self.model).double()
            inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in self.inputs]
            outputs = run(model, inputs)
        except Exception:  # the user's own forward may ask for single precision in any way
            return None
        return _Witness(model, inputs, outputs) if shows_something(outputs) else None

    def failure(
        self, graph: Graph, architectures: Sequence[Architecture], executions: Sequence[Execution] | None = None
    ) -> str | None:
        """Why a cut model, or the supernet in these executions, differs from the masked one; None if none does.

        Where those are None, architectures take turns in them, the dear one where most is cut: that both agree is
        hardly ever a property of the model. Rounding is no fault of the graph: what differs is looked at again in
        double precision, which takes several times as long.
        """
        reason = self._failure(graph, architectures, executions)
        precise = self.in_double if reason is not None and DIFFERS in reason else None
        return reason if precise is None else precise.failure(graph, architectures, executions)

    def _failure(
        self, graph: Graph, architectures: Sequence[Architecture], executions: Sequence[Execution] | None
    ) -> str | None:
        for place, architecture in enumerate(architectures):
            found, reason = self._cut(graph, architecture)
            if reason is not None:
                return reason
            try:
                with no_fast_path():
                    wanted = run(mask(self.model, graph, architecture), self.inputs)
            except Exception as error:  # the user's own forward may fail in any way
                return f"the masked model fails: {first_line(error)}"
            reason = difference(found, wanted)
            if reason is not None:
                return f"the cut model {reason}"
            if place == 0 and executions != ():
                reason = self._order_failure(graph, architecture)
                if reason is not None:
                    return reason
            for execution in EXECUTIONS[place % 2 :][:1] if executions is None else executions:
                reason = self._supernet_failure(graph, architecture, execution, wanted)
                if reason is not None:
                    return reason
        return None

    def _order_failure(self, graph: Graph, architecture: Architecture) -> str | None:
        """Why the model is another one where the channels of widths that are cut stand in another order."""
        draw = np.random.default_rng(0)
        cut_away = {name: size - architecture.widths[name] for name, size in graph.full.widths.items()}
        importance = {name: draw.random(size) * bool(cut_away[name]) for name, size in graph.full.widths.items()}
        if not any(cut_away.values()):
            return None
        try:
            found = run(ranked(self.model, graph, importance), self.inputs)
            reason = difference(found, self.outputs, of="the model", tolerance=_ORDER_TOLERANCE)
        except Exception as error:  # the user's own forward may fail in any way
            reason = f"fails: {first_line(error)}"
        return reason and f"with its channels in another order it {reason}"

    def _cut(self, graph: Graph, architecture: Architecture) -> tuple[list[Tensor], str | None]:
        """Outputs of the cut model, which is not kept, and why it is no good."""
        try:
            small = cut(self.model, graph, architecture)
            found = run(small, self.inputs)
        except Exception as error:  # the user's own forward may fail in any way
            return [], f"the cut model fails: {first_line(error)}"
        count = sum(parameter.numel() for parameter in small.parameters())
        if count != graph.params(architecture):
            return [], f"the cut model has {count} parameters instead of {graph.params(architecture)}"
        error = _training_error(small, self.inputs)
        if error is not None and _training_error(shared_copy(self.model), self.inputs) is None:
            return [], f"the cut model fails in training mode: {error}"
        return found, None

    def _supernet_failure(
        self, graph: Graph, architecture: Architecture, execution: Execution, wanted: list[Tensor]
    ) -> str | None:
        full = graph.full
        space = SearchSpace(
            {name: tuple(sorted({size, full.widths[name]})) for name, size in architecture.widths.items()},
            {name: tuple(sorted({size, full.depths[name]})) for name, size in architecture.depths.items()},
        )
        try:
            opened = Supernet(shared_copy(self.model), graph, space, execution=execution, in_place=True)
            if opened.keeps:
                run(opened, self.inputs)  # of the largest, of which nothing may be kept
            with opened.fixed(architecture) as supernet:
                reason = difference(run(supernet, self.inputs), wanted)
        except Exception as error:
            return f"the {execution} supernet fails: {first_line(error)}"
        return reason and f"the {execution} supernet {reason}"


def _training_error(model: nn.Module, inputs: list[Tensor]) -> str | None:
    """Why a model does not run in training mode, where a forward may take other paths (auxiliary heads)."""
    error = None
    for trial in (inputs, [torch.cat([tensor, tensor]) for tensor in inputs]):  # a batch norm may need two samples
        try:
            model.train()
            run(model, trial)
        except Exception as failure:  # the user's own forward may fail in any way
            error = first_line(failure)
            continue
        return None
    return error
