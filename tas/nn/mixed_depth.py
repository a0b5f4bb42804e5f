"""Depths in a supernet: what follows the blocks of a run gets a mixture of their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.graph import Graph
from tas.nn.mixing import FixedSize, Interpolation, Size, as_tensor, interpolation_matrix
from tas.nn.rules.opened import Opened, handed_on


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
        in_place: see `Depth`.
    """

    exit: FreeExit | None = None
    in_place: bool = False
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

    @property
    def is_mixed(self) -> bool:
        """Whether candidates are mixed, and not one of them used alone."""
        return self.vector is not None or None not in self.weights.values()

    def hand_on(self, outputs: Tensor, position: int) -> Tensor:
        """What follows block `position` gets: its outputs, behind the last block the mixture."""
        if position == 0:
            self._sum = None
        weight = self._weight(position + 1)
        if weight is not None:
            aligned = outputs if self.exit is None else self.exit.align(outputs, position + 1, self.how)
            if self.in_place and aligned is outputs and position + 1 < self.num_blocks:
                aligned = outputs.clone()  # the gradient of the weight needs them as they are
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
        outputs, others = (handed[0], handed[1:]) if isinstance(handed, tuple | list) else (handed, None)
        outputs = self._state.hand_on(outputs, self.position)
        return outputs if others is None else (outputs, *others)


class OpenBranch(OpenBlock):
    """A block that may be skipped, and whose result is added to its input by whoever calls it."""

    def forward(self, inputs: Tensor, *arguments, **options) -> Any:
        """What the block gives, or zeros; at the end of the run what makes of the sum the mixture; in a tuple if so."""
        state, place = self._state, self.position
        state.hand_on(inputs, place - 1)
        handed: Any
        if state.is_needed(place):
            handed = self.module(inputs, *arguments, **options)
        else:
            handed = handed_on((torch.zeros_like(inputs), *arguments, *options.values()), self.returns)
        if place + 1 < state.num_blocks or not state.is_mixed:
            return handed
        outputs, others = (handed[0], handed[1:]) if isinstance(handed, tuple | list) else (handed, None)
        outputs = state.hand_on(inputs + outputs, place) - inputs
        return outputs if others is None else (outputs, *others)
