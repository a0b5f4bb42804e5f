"""Blocks that can be skipped: how they are found in a captured graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from tas.graph import Depth
from tas.nn.branches import branch_runs, container
from tas.nn.calls import UNSEEN, Call, Ends, calls_of, find_ends, is_alike
from tas.nn.capture import Captured
from tas.nn.paths import joined, lies_in
from tas.nn.program import changes, module_paths, op_name, own_paths

PASSES = {"dropout", "relu", "clone", "contiguous", "feature_dropout"}
MOST_SUMS = 2  # of a block (attention and a perceptron); what has more, and is no item of a list, is a stack of blocks
_LISTS = nn.Sequential | nn.ModuleList | nn.ModuleDict
_PROJECTIONS = {"conv2d", "linear", "conv1d", "conv3d"}


def find_depths(model: nn.Module, captured: Captured, inputs: Sequence[Tensor]) -> tuple[Depth, ...]:
    """Runs of residual blocks in every Sequential, ModuleList and ModuleDict, then among what other modules call.

    Innermost modules come first: dropping single blocks leaves more to choose than dropping stages.
    A block can be skipped if it makes of one tensor another of the same shape and the same channels, with a sum onto
    its own input inside. The child before a run, or the run's first block, always stays. Last come runs of branches.

    Args:
        model: in evaluation mode.
        captured: what it was captured as.
        inputs: what its forward takes.
    """
    calls = calls_of(model, inputs)
    modules = _Modules.of(captured, calls)
    depths = _of_blocks(model, modules)
    depths += _of_branches(modules, depths, captured.drafts)
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    depths.sort(key=lambda depth: order[depth.blocks[0]])
    # where the blocks of a depth do not agree, the self check finds what that does
    return tuple(
        replace(depth, returns=calls.get(depth.blocks[1], UNSEEN).returns, in_place=modules.change_in_place(depth))
        for depth in depths
    )


@dataclass(frozen=True)
class _Modules:
    """What is called, by path, in the order of the calls.

    Attributes:
        inside: nodes of every module that may be a block.
        ends: the one node that it reads, and the one that it gives.
        layered: those with layers.
        alike: those of them that give the channels that they read.
        stacks: those of them with more sums than a block has.
        lent: what is called by several paths: the first, and another.
    """

    inside: Mapping[str, list[fx.Node]]
    ends: Mapping[str, Ends]
    layered: Sequence[str]
    alike: Sequence[str]
    stacks: Set[str]
    lent: Set[tuple[str, str]]

    @classmethod
    def of(cls, captured: Captured, calls: Mapping[str, Call]) -> _Modules:
        """What was captured, told apart with the help of one run."""
        inside, lent = _called(captured)
        ends = find_ends(inside, captured, calls)
        layered = [path for path, nodes in inside.items() if any(op_name(node) in _PROJECTIONS for node in nodes)]
        roots = captured.labels.roots()
        alike = [path for path in layered if is_alike(*ends[path], captured, roots)]
        stacks = {path for path in alike if _is_stack(inside[path], ends[path])}
        return cls(inside, ends, layered, alike, stacks, lent)

    def change_in_place(self, depth: Depth) -> bool:
        """Whether an operation in place changes what blocks of a depth read."""
        streams = [entry for block in depth.blocks if (entry := self.ends[block][0]) is not None]
        return any(changes(user, stream) for stream in streams for user in stream.users)

    def branch_runs(self, taken: Sequence[str] = ()) -> list[list[str]]:
        """Runs of branches, without what lies in blocks that are taken, or holds them."""
        may_go = [path for path in self.alike if path not in self.stacks and not _overlap([path], taken)]
        return branch_runs(may_go, self.layered, self.ends, self.inside)


def _of_blocks(model: nn.Module, modules: _Modules) -> list[Depth]:
    blocks = {path for path in modules.alike if _adds_input(modules.inside[path], modules.ends[path][0])}
    branches = [branch for run in modules.branch_runs() for branch in run]
    parts = {stack: sum(lies_in(branch, stack) for branch in branches) for stack in modules.stacks}
    depths: list[Depth] = []
    for path, children, is_list in _families(model, modules.inside):
        left = {stack for stack in modules.stacks if not is_list or parts[stack] >= 2 * MOST_SUMS}
        found = _runs(children, blocks.intersection(children) - left, modules.ends, modules.inside)
        runs = [run for run in (_from_last_lender(run, modules.lent) for run in found) if len(run) > 1]
        runs = [run for run in runs if not _overlap(run, [block for depth in depths for block in depth.blocks])]
        for run in runs:
            name = path if len(runs) == 1 and path else run[1]  # run[0] may be a layer, and name a width
            depths.append(Depth(name, tuple(run)))
    return depths


def _of_branches(modules: _Modules, others: Sequence[Depth], layers: Iterable[str]) -> list[Depth]:
    """Depths of what lies in no other one; none has the name of a layer, which names a width."""
    taken, names = [block for depth in others for block in depth.blocks], {"", *layers, *(item.name for item in others)}
    runs: list[list[str]] = []
    for run in modules.branch_runs(taken):
        run = _from_last_lender(run, modules.lent)
        if len(run) > 1 and not _overlap(run[1:], taken):
            runs.append(run)
            taken += run[1:]  # what leads branches may lie anywhere
    containers = Counter(container(run[1:]) for run in runs)
    names |= {path for path, count in containers.items() if count > 1}
    chosen = [next(n for n in (container(run[1:]), *run[1:], f"{run[1]}+") if n not in names) for run in runs]
    return [Depth(name, tuple(run), is_added=True) for name, run in zip(chosen, runs, strict=True)]


def _families(model: nn.Module, called: Iterable[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Path of every module, its children, and whether it is a list of them; lists first, and innermost first.

    Args:
        model: whose modules.
        called: paths of what may be a block in the order of their calls, which the children of what is no list have.
    """
    parents = [(path, module) for path, module in model.named_modules() if next(module.children(), None) is not None]
    parents.sort(key=lambda item: (not isinstance(item[1], _LISTS), -len(item[0].split(".")) if item[0] else 0))
    for path, module in parents:
        children, is_list = [joined(path, name) for name, _ in module.named_children()], isinstance(module, _LISTS)
        yield path, children if is_list else [child for child in called if child in children], is_list


def _called(captured: Captured) -> tuple[dict[str, list[fx.Node]], set[tuple[str, str]]]:
    """The nodes of every module that may be a block, and what is called by several paths: the first, and another.

    No block is what is called by several paths itself, or calls what lies elsewhere: it cannot go alone.
    """
    inside: dict[str, list[fx.Node]] = {}
    lent: set[tuple[str, str]] = set()
    bound: set[str] = set()
    for node in captured.nodes:
        paths = module_paths(node)
        for path in dict.fromkeys(paths):
            inside.setdefault(path, []).append(node)
        lent |= {pair for pair in zip(own_paths(node), paths, strict=True) if len({*pair}) > 1}
        bound |= {path for path in paths if not all(lies_in(inner, path) for inner in paths[paths.index(path) :])}
    bound |= {path for pair in lent for path in pair}
    return {path: nodes for path, nodes in inside.items() if path not in bound}, lent


def _from_last_lender(run: list[str], lent: Set[tuple[str, str]]) -> list[str]:
    """The blocks from the last one on in which a module is that more than the later blocks call: it has to stay.

    Args:
        run: paths of blocks.
        lent: first path of a module, and another by which it is called.
    """
    lenders = [
        place
        for place, block in enumerate(run)
        for own, called in lent
        if lies_in(own, block) and not any(lies_in(called, later) for later in run[place:])
    ]
    return run[max(lenders, default=0) :]


def _overlap(blocks: Sequence[str], others: Sequence[str]) -> bool:
    return any(lies_in(other, block) or lies_in(block, other) for block in blocks for other in others)


def _runs(
    children: list[str],
    skippable: Set[str],
    ends: Mapping[str, Ends],
    inside: Mapping[str, list[fx.Node]],
) -> list[list[str]]:
    runs: list[list[str]] = []
    current: list[str] = []
    for child, before in zip(children, [None, *children], strict=False):
        entry, _ = ends.get(child, (None, None))
        follows = before is not None and entry is not None and entry is ends.get(before, (None, None))[1]
        if child in skippable:
            if not current and before and follows:
                current = [before]  # the lead: it changes the shape and stays
            elif current and not (follows and (len(current) == 1 or _reads_alone(entry, inside[child]))):
                runs.append(current)
                current = []
            current.append(child)
        else:
            runs.append(current)
            current = []
    return [*runs, current]


def _reads_alone(entry: fx.Node | None, nodes: list[fx.Node]) -> bool:
    """Whether nothing but these nodes reads `entry`: what a droppable block gives must not be used twice."""
    return entry is not None and set(entry.users) <= set(nodes)


def _adds_input(nodes: list[fx.Node], entry: fx.Node | None) -> bool:
    """Whether anything is added to what a module reads inside of it."""
    return any(entry in _added(node) for node in nodes if op_name(node) == "add")


def _is_stack(nodes: list[fx.Node], ends: Ends) -> bool:
    """Whether a module has more sums onto its stream, one behind the other, than a block has."""
    count, stream = 0, ends[0]
    for node in nodes:
        if op_name(node) == "add" and stream in _added(node):
            count, stream = count + 1, node
    return count > MOST_SUMS


def _added(node: fx.Node) -> set[fx.Node]:
    """What a sum adds: what it reads, and what operations without parameters have made that of."""
    found = set()
    for source in node.all_input_nodes:
        found.add(source)
        while op_name(source) in PASSES:
            source = source.all_input_nodes[0]
            found.add(source)
    return found
