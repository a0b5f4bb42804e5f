"""Blocks that can be skipped: how they are found in a captured graph, and how the supernet mixes their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tas.graph import Depth, Graph
from tas.nn.capture import Captured
from tas.nn.mixing import FixedSize, Interpolation, Size, as_tensor, interpolation_matrix
from tas.nn.paths import joined, lies_in
from tas.nn.program import module_paths, own_paths
from tas.nn.rules.opened import Opened, handed_on

PASSES = {"dropout", "relu", "clone", "contiguous", "feature_dropout"}
MOST_SUMS = 2  # of a block (attention and a perceptron); what has more, and is no item of a list, is a stack of blocks
_LISTS = nn.Sequential | nn.ModuleList | nn.ModuleDict
_PROJECTIONS = {"conv2d", "linear", "conv1d", "conv3d"}


def find_depths(model: nn.Module, captured: Captured) -> tuple[Depth, ...]:
    """Runs of residual blocks in every Sequential, ModuleList and ModuleDict, then among what other modules call.

    Innermost modules come first: dropping single blocks leaves more to choose than dropping stages.
    A block can be skipped if it is one tensor in, one out, of the same shape and the same channels, with a sum onto
    its own input inside. The child before a run, or the run's first block, always stays.
    """
    inside, lent = _called(captured)
    roots = captured.labels.roots()
    ends = {path: _ends(nodes, captured) for path, nodes in inside.items()}
    skippable = {path for path, nodes in inside.items() if _is_skippable(nodes, *ends[path], captured, roots)}
    called = {path: place for place, path in enumerate(inside)}  # by their first node
    parents = {path: module for path, module in model.named_modules() if next(module.children(), None) is not None}
    listed = {path for path, module in parents.items() if isinstance(module, _LISTS)}
    depths: list[Depth] = []
    for path in sorted(parents, key=lambda path: (path not in listed, -len(path.split(".")) if path else 0)):
        children = [joined(path, name) for name, _ in parents[path].named_children()]
        may_go = skippable.intersection(children)
        if path not in listed:
            children = sorted(filter(called.__contains__, children), key=called.__getitem__)
            may_go = {child for child in may_go if _sums(inside[child], ends[child][0]) <= MOST_SUMS}
        taken = [block for depth in depths for block in depth.blocks]
        found = (_from_last_lender(run, lent) for run in _runs(children, may_go, ends, inside))
        runs = [run for run in found if len(run) > 1 and not _overlap(run, taken)]
        for run in runs:
            name = path if len(runs) == 1 and path else run[1]  # run[0] may be a layer, and name a width
            depths.append(Depth(name, tuple(run)))
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    return tuple(sorted(depths, key=lambda depth: order[depth.blocks[0]]))


def with_returns(model: nn.Module, depths: Sequence[Depth], inputs: Sequence[Tensor]) -> tuple[Depth, ...]:
    """The depths with what their blocks return, seen in one run: the tensor, or a tuple that begins with it."""
    seen: dict[str, int] = {}

    def look(path: str, module: nn.Module, arguments: Any, outputs: Any) -> None:
        seen[path] = len(outputs) if isinstance(outputs, tuple) else 0

    with ExitStack() as hooks, torch.no_grad():
        for path in [depth.blocks[1] for depth in depths]:  # the first block always stays
            hooks.enter_context(model.get_submodule(path).register_forward_hook(partial(look, path)))
        try:
            model(*inputs)
        except Exception:  # the user's own forward may fail in any way; the self check tells of it
            return tuple(depths)
    # where the blocks of a depth do not agree, the self check finds what that does
    return tuple(replace(depth, returns=seen.get(depth.blocks[1], 0)) for depth in depths)


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


def _overlap(blocks: list[str], others: list[str]) -> bool:
    return any(lies_in(other, block) or lies_in(block, other) for block in blocks for other in others)


def _runs(
    children: list[str],
    skippable: Set[str],
    ends: Mapping[str, tuple[fx.Node | None, fx.Node | None]],
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


def _ends(nodes: list[fx.Node], captured: Captured) -> tuple[fx.Node | None, fx.Node | None]:
    """The one node a module reads and the one it gives; None where there is not exactly one."""
    members = set(nodes)
    entries, exits = {}, {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in members and isinstance(captured.values.get(source), Tensor):
                entries[source] = None
        if any(user not in members for user in node.users):
            exits[node] = None
    entry = next(iter(entries)) if len(entries) == 1 else None
    exit_ = next(iter(exits)) if len(exits) == 1 else None
    return entry, exit_


def _reads_alone(entry: fx.Node | None, nodes: list[fx.Node]) -> bool:
    """Whether nothing but these nodes reads `entry`: what a droppable block gives must not be used twice."""
    return entry is not None and set(entry.users) <= set(nodes)


def _is_skippable(
    nodes: list[fx.Node], entry: fx.Node | None, exit_: fx.Node | None, captured: Captured, roots: np.ndarray
) -> bool:
    if entry is None or exit_ is None or not any(op_name(node) in _PROJECTIONS for node in nodes):
        return False
    before, after = captured.values[entry], captured.values[exit_]
    if not isinstance(after, Tensor) or before.shape != after.shape:
        return False
    sums = (node for node in nodes if op_name(node) == "add")
    return any(_reaches(source, entry) for node in sums for source in node.all_input_nodes) and np.array_equal(
        roots[before.numpy()], roots[after.numpy()]
    )


def _sums(nodes: list[fx.Node], entry: fx.Node | None) -> int:
    """How many sums onto the stream a module has, one behind the other."""
    count, stream = 0, entry
    for node in nodes:
        if stream and op_name(node) == "add" and any(_reaches(source, stream) for source in node.all_input_nodes):
            count, stream = count + 1, node
    return count


def op_name(node: fx.Node) -> str:
    """Name of the operation of a node, without namespace, overload and in-place underscore; empty for the rest."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2].rstrip("_") if schema is not None else ""


def _reaches(node: fx.Node, entry: fx.Node) -> bool:
    """Whether `node` is `entry`, or hands it on through operations without parameters."""
    while node is not entry and op_name(node) in PASSES:
        node = node.all_input_nodes[0]
    return node is entry


@dataclass(frozen=True, eq=False)
class FreeExit:
    """The open size of what a depth of free blocks hands on: the largest among the depths that are drawn.

    Attributes:
        depth: its state.
        outputs: sizes behind every block.
        channels: in the full model.
    """

    depth: DepthState
    outputs: tuple[Size, ...]
    channels: int

    @property
    def active(self) -> Any:
        """A number, or a tensor in dense execution."""
        if self.depth.drawn is None:
            active = [self.outputs[kept - 1].active for kept in self.depth.weights]
            return active[0] if len(active) == 1 else max(active)
        device = self.depth.drawn.device
        return torch.stack([as_tensor(size, device) for size in self.outputs])[self.depth.drawn].max()

    def align(self, outputs: Tensor, kept: int, how: Interpolation) -> Tensor:
        """What `kept` blocks give, interpolated to the open size; full shape in dense execution."""
        size, wanted = self.outputs[kept - 1].active, self.active
        rows, columns = (wanted, size) if self.depth.drawn is None else (self.channels, self.channels)
        if self.depth.drawn is None and size == wanted:
            return outputs
        options: dict[str, Any] = {"device": outputs.device, "dtype": outputs.dtype}
        matrix = interpolation_matrix(size, wanted, rows, columns, how=how, **options)
        return F.conv2d(outputs, matrix[:, :, None, None])


class DepthState:
    """How the outputs of one depth's blocks are weighed now.

    Compact: `weights` maps a number of blocks to its weight, blocks beyond the largest are not run.
    Dense: `vector` holds one weight per number of blocks and every block runs; `drawn` the places that are mixed.

    Attributes:
        exit: where its blocks have widths of their own, what is handed on; their outputs are aligned to it.
        how: by which interpolation.
    """

    exit: FreeExit | None = None
    how: Interpolation = "average"

    def __init__(self, candidates: Sequence[int], num_blocks: int):
        self.candidates, self.num_blocks = tuple(candidates), num_blocks
        self.vector: Tensor | None = None
        self.pick(len(candidates) - 1)
        self._sum: Tensor | None = None

    def draw(self, chosen: Sequence[int], weights: Tensor) -> None:
        """Mix the candidates with these indices; an index may repeat."""
        self.vector, self.drawn, self.weights = None, None, {}
        for place, index in enumerate(chosen):
            kept = self.candidates[index]
            self.weights[kept] = self.weights.get(kept, 0) + weights[place]
        self.deepest = max(self.weights)

    def draw_dense(self, chosen: Tensor, weights: Tensor) -> None:
        """The same with tensors only."""
        table = torch.tensor(self.candidates, device=chosen.device)
        self.drawn = table[chosen] - 1
        self.vector = weights.new_zeros(self.num_blocks).index_add(0, self.drawn, weights)
        self.weights, self.deepest = {}, self.num_blocks

    def pick(self, index: int) -> None:
        """Use one candidate alone."""
        self.vector, self.drawn, self.weights = None, None, {self.candidates[index]: None}
        self.deepest = self.candidates[index]

    def is_needed(self, position: int) -> bool:
        """Whether block `position` (from 0) runs."""
        return position < self.deepest

    def hand_on(self, outputs: Tensor, position: int) -> Tensor:
        """What follows block `position` gets: its outputs, behind the last block the mixture."""
        if position == 0:
            self._sum = None
        weight = self._weight(position + 1)
        if weight is not None:
            aligned = outputs if self.exit is None else self.exit.align(outputs, position + 1, self.how)
            self._sum = weight * aligned if self._sum is None else torch.addcmul(self._sum, aligned, weight)
        if position + 1 == self.num_blocks and self._sum is not None:
            outputs, self._sum = self._sum, None
        return outputs

    def _weight(self, kept: int) -> Any:
        return self.weights.get(kept) if self.vector is None else self.vector[kept - 1]


def free_exits(graph: Graph, widths: Mapping[str, Size], depths: Mapping[str, DepthState]) -> dict[str, FreeExit]:
    """The open sizes of the exits of a graph, each made known to its depth."""
    found = {}
    for item in graph.exits:
        outputs = tuple(FixedSize(item.channels) if width is None else widths[width] for width in item.widths)
        found[item.name] = depths[item.depth].exit = FreeExit(depths[item.depth], outputs, item.channels)
    return found


class OpenBlock(Opened):
    """A block that may be skipped."""

    def __init__(self, module: nn.Module, state: DepthState, position: int, returns: int = 0):
        super().__init__(module)
        self.position, self.returns = position, returns
        self._state = state

    def forward(self, inputs: Tensor, *arguments, **options) -> Any:
        """What the block gives, its input unchanged, or at the end of the run the mixture; in a tuple if it does so."""
        handed: Any
        if self._state.is_needed(self.position):
            handed = self.module(inputs, *arguments, **options)
        else:
            handed = handed_on((inputs, *arguments, *options.values()), self.returns)
        outputs, others = (handed[0], handed[1:]) if isinstance(handed, tuple) else (handed, None)
        outputs = self._state.hand_on(outputs, self.position)
        return outputs if others is None else (outputs, *others)
