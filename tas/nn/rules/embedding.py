"""Tables of which a forward takes rows: those of a fixed place (positions), or those that the input names (tokens)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tas.graph import Layer
from tas.nn.labels import spread
from tas.nn.rules.base import Call, Constant, Kind
from tas.nn.rules.opened import CompactLayer, DenseLayer
from tas.nn.rules.projection import MixedWidth, fold


def embedding(call: Call) -> Any:
    """A row of the table wherever the input names one; its elements are channels that the table makes."""
    table = call.arguments["weight"]
    if not isinstance(table, Constant):
        return call.refuse("is read as a table that is computed in forward, not stored")
    path, problem = call.owner(table, nn.Embedding)
    channels = call.labels.fresh(table.shape[1])
    if not problem:
        assert table.name is not None
        call.labels.attach(table.name, 1, channels)
        call.draft("tokens", path)
        if call.model.get_submodule(path).max_norm is not None:
            problem = "its rows are scaled by their length (max_norm), which all channels make"
    if problem:
        call.labels.freeze(channels, problem, call.module)
    return spread(channels, -1, call.shape)


def embedding_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Length of a row."""
    weight = tensors.get("weight", module.weight)
    assert isinstance(weight, Tensor)
    return {"embedding_dim": weight.shape[1]}


class CompactEmbedding(CompactLayer):
    """A table of which only the drawn channels are read."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer, widths, embedding_numbers)
        self._mixed = MixedWidth.of(layer, widths, "weight", 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) to (…, active channels)."""
        return _mixed(super().forward(tokens), self._mixed)


class DenseEmbedding(DenseLayer):
    """A table in full shape; the mixture switches inactive channels off, or whoever reads them does."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer, widths)
        self._mixed = MixedWidth.of(layer, widths, "weight", 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) to (…, all channels)."""
        return _mixed(super().forward(tokens), self._mixed)


def _mixed(rows: Tensor, mixed: MixedWidth | None) -> Tensor:
    """The rows that were read are fewer than those of the table."""
    matrix = None if mixed is None else mixed.matrix(rows)
    return rows if mixed is None or matrix is None else fold(rows, matrix, mixed.repeat, dim=-1)


LABELS = {"embedding": embedding}
KINDS = {
    "embedding": Kind(embedding_numbers, CompactEmbedding, DenseEmbedding),
    "tokens": Kind(embedding_numbers, CompactEmbedding, DenseEmbedding, makes={"weight": 1}),
}
