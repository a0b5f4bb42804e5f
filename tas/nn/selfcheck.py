"""Numerical proof that cutting a model computes what masking it computes; what fails is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
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
from tas.nn.witness import EXECUTIONS, Execution, Witness

_NOTHING_TO_SEE = "the outputs of the model are not finite, or nothing but zeros, so that no cut can be proven"
_AS_MANY = "cut to as many channels as others"
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
    witness = Witness.find(model, example, torch.Generator().manual_seed(seed))
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


def _without_numbers_that_stay(witness: Witness, graph: Graph, seed: int) -> Graph:
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


def _proven(witness: Witness, graph: Graph, seed: int, numbers: Callable[[], Sequence[Attribute]]) -> Graph:
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
        graph = _without_sizes(witness, graph, failed)
        allowed = {width.name: width.allowed(failed.widths[width.name]) for width in graph.widths}
        graph = _without_culprits(witness, graph, replace(failed, widths=allowed), "cut to some sizes")
    reason = witness.failure(graph, architectures_to_try(graph, seed))
    if reason is not None:  # nothing can be promised
        graph = _without_all(graph, [*graph.full.widths, *graph.full.depths], f"cut to some sizes, {reason}")
    return graph


def _without_numbers_by_chance(witness: Witness, graph: Graph, failing: dict[str, str]) -> tuple[Graph, dict[str, str]]:
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


def _without_sizes(witness: Witness, graph: Graph, trial: Architecture) -> Graph:
    """The graph without the sizes below those that are known to do, for widths that fail alone at one of them.

    A group norm, say, has nothing to average over where one channel of a group is left of a map of one position. Others
    of as many channels are tried at the same size, which no trial may have.
    """
    least, full = small(graph).widths, graph.full.widths
    below = [name for name in least if trial.widths[name] < least[name]]
    for size, channels in {(trial.widths[name], full[name]) for name in _failing(witness, graph, below, trial)}:
        alike = [name for name in least if full[name] == channels]
        for name in _failing(witness, graph, alike, cut_to(graph, dict.fromkeys(alike, size))):
            for excluded in range(1, least[name]):
                graph = without_size(graph, name, excluded)
    return graph


def _without_culprits(witness: Witness, graph: Graph, trial: Architecture, how: str) -> Graph:
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


def _failing(witness: Witness, graph: Graph, names: Sequence[str], trial: Architecture) -> dict[str, str]:
    """Reason by name of every group that fails when cut alone as in a trial; halves that pass are not looked into.

    Most that fail do so without a supernet, and are found first: that takes half of the time.
    """
    failing = _failing_in(witness, graph, names, trial, ())
    left = [name for name in names if name not in failing]
    return failing | _failing_in(witness, graph, left, trial, EXECUTIONS)


def _failing_in(
    witness: Witness, graph: Graph, names: Sequence[str], trial: Architecture, executions: Sequence[Execution]
) -> dict[str, str]:
    reason = witness.failure(graph, [cut_only(graph, set(names), trial)], executions) if names else None
    if reason is None:
        return {}
    if len(names) == 1:
        return {names[0]: reason}
    middle = len(names) // 2
    halves = (names[:middle], names[middle:])
    return {name: why for half in halves for name, why in _failing_in(witness, graph, half, trial, executions).items()}


def _without_all(graph: Graph, names: Sequence[str], reason: str) -> Graph:
    for name in names:
        graph = without(graph, name, reason)
    return graph
