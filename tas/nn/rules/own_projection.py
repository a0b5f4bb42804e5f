"""Convolutions whose forward computes the weight from the stored one: standardised ones (BiT, NFNets), masked ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer, positions_of
from tas.nn.mixing import DenseAxis, DenseWidth
from tas.nn.rules.base import Kind, LabelRule, layout_of
from tas.nn.rules.opened import call_with
from tas.nn.rules.projection import CompactProjection, OpenProjection, convolution_numbers, fold


class CompactOwnProjection(CompactProjection):
    """Computes the drawn channels; what it makes is mixed, not its weight."""

    def _active(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters(recurse=False)) | self._tensors.of(self.module)

    def forward(self, inputs: Tensor, *others: Any, **options: Any) -> Tensor:
        """Inputs and outputs as of the module, over the drawn channels."""
        tensors = self._active()
        return _mixed(self, call_with(self.module, tensors, self._numbers(tensors), inputs, *others, **options))


class _SomeRead(OpenProjection):
    """In full shape, called for some of the channels that it reads: zeros would change its weight."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer, widths)
        self._layout = layout_of(layer, "weight", 1)
        shapes = {item.short: item.shape for item in layer.parameters}
        self._weights = [name for name, shape in shapes.items() if shape == shapes["weight"]]  # a mask, say

    def _kept(self, weight: Tensor) -> Tensor:
        """Positions on the weight's second axis."""
        raise AssertionError("abstract")

    def forward(self, inputs: Tensor, *others: Any, **options: Any) -> Tensor:
        """Full shape in and out."""
        whole = self.module.weight
        kept = self._kept(whole)
        tensors = {name: getattr(self.module, name).index_select(1, kept) for name in self._weights}
        read = torch.cat([kept + group * whole.shape[1] for group in range(self.module.groups)])
        numbers = convolution_numbers(self.module, tensors)
        return _mixed(self, call_with(self.module, tensors, numbers, inputs.index_select(1, read), *others, **options))


class DenseOwnProjection(_SomeRead):
    """Reads the active channels; how many they are is looked up, which breaks a compiled graph."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module, layer, widths)
        self._reads = DenseAxis(self._layout, widths)

    def _kept(self, weight: Tensor) -> Tensor:
        return self._reads.mask(weight.new_ones(weight.shape[1]), 0).nonzero().flatten()


class MaskedOwnProjection(_SomeRead):
    """Reads the channels that an architecture keeps."""

    def __init__(self, module: nn.Module, layer: Layer, sizes: Mapping[str, int]):
        super().__init__(module, replace(layer, mixed_by=None), {})
        self._sizes = sizes

    def _kept(self, weight: Tensor) -> Tensor:
        places = range(weight.shape[1]) if self._layout is None else positions_of(self._layout, self._sizes)
        return torch.as_tensor(places, device=weight.device)


def _mixed(layer: OpenProjection, outputs: Tensor) -> Tensor:
    matrix = layer._matrix(outputs)
    return outputs if matrix is None or layer._mixed is None else fold(outputs, matrix, layer._mixed.repeat, 1)


LABELS: dict[str, LabelRule] = {}  # `projection` tells them apart
KINDS = {
    "own_convolution": Kind(
        convolution_numbers,
        CompactOwnProjection,
        DenseOwnProjection,
        makes={"weight": 0},
        reads={"weight": 1},
        masked=MaskedOwnProjection,
    ),
}
