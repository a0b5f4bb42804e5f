"""Branches: modules whose result is added to what they read by whoever calls them (`x = attention(x) + x`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import fx

from tas.nn.calls import Ends
from tas.nn.paths import lies_in
from tas.nn.program import op_name


def branch_runs(
    may_go: Collection[str],
    leads: Collection[str],
    ends: Mapping[str, Ends],
    inside: Mapping[str, Sequence[fx.Node]],
) -> list[list[str]]:
    """Runs of branches, each of which reads the sum behind the one before it, after what leads them; innermost first.

    Args:
        may_go: paths of modules whose result is like what they read.
        leads: of modules that may lead a run; where none of them makes what it reads, its first branch does.
        ends: the one node that a module reads and the one that it gives, by path.
        inside: the nodes of every module.
    """
    sums = {path: total for path in sorted(may_go, key=_nesting) if (total := _sum_behind(*ends[path])) is not None}
    outermost = {total: path for path, total in reversed(sums.items())}
    readers = {ends[path][0]: path for path in outermost.values()}
    follows = {
        path: after
        for total, path in outermost.items()
        if (after := readers.get(total)) is not None and {*total.users} <= {*inside[after], sums[after]}
    }
    runs = []
    for first in sorted({*outermost.values()} - {*follows.values()}, key=_nesting, reverse=True):
        run = [first]
        while run[-1] in follows:
            run.append(follows[run[-1]])
        lead = min((path for path in leads if ends[path][1] is ends[first][0]), key=_nesting, default=None)
        runs.append(run if lead is None else [lead, *run])
    return [run for run in runs if len(run) > 1]


def container(paths: Sequence[str]) -> str:
    """The path of the innermost module that holds all of these; of a single one its own."""
    path = paths[0]
    while not all(lies_in(other, path) for other in paths):
        path = path.rpartition(".")[0]
    return path


def _nesting(path: str) -> tuple[int, str]:
    return path.count("."), path


def _sum_behind(entry: fx.Node | None, exit_: fx.Node | None) -> fx.Node | None:
    """The node that adds what a module gives, read by nothing else, to what the module reads."""
    users = [*exit_.users] if exit_ is not None and exit_ is not entry else []
    is_sum = len(users) == 1 and op_name(users[0]) == "add" and not users[0].kwargs.get("alpha")
    return users[0] if is_sum and {*users[0].all_input_nodes} == {entry, exit_} else None
