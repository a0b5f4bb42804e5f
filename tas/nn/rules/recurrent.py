"""LSTM, GRU and plain recurrent layers: what they read is cut with them, what they make stays."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tas.graph import Layer, positions_of
from tas.nn.labels import fixed, varying_dims
from tas.nn.mixing import CompactAxis, CompactWidth, DenseAxis, DenseWidth
from tas.nn.rules.base import Call, Constant, Kind, layout_of
from tas.nn.rules.opened import Opened

_READS = ("weight_ih_l0", "weight_ih_l0_reverse")  # the first layer's, of every direction


def recurrent(call: Call) -> Any:
    """Read the features of every step; what is made holds no channels that could be cut."""
    inputs, weights = call.arguments.get("input"), call.arguments.get("params") or []
    names = [weight.name for weight in weights if isinstance(weight, Constant)]
    path = (names[0] or "").rpartition(".")[0] if names else ""
    owner = call.model.get_submodule(path)
    if inputs is None or None in names or len(names) != len(weights) or not isinstance(owner, nn.RNNBase):
        return call.refuse(f"is read by {call.op}, whose weights belong to no recurrent layer")
    inputs = inputs if isinstance(inputs, Tensor) else fixed(inputs.shape)
    last = inputs.dim() - 1
    if set(varying_dims(inputs)) - {last}:
        return call.refuse(f"{call.op} runs along channels, not over them")
    reads, draft = call.labels.channel_vector(inputs, last), call.draft("recurrent", path)
    steps = prod(inputs.shape[:-1]) // call.batch
    for name in names:
        short, weight = str(name).rpartition(".")[2], call.tensor(str(name))
        if short in _READS:
            call.labels.attach(str(name), 1, reads)
            call.count(draft, steps * weight.shape[0], (reads,))
        elif weight.dim() > 1:
            call.count(draft, steps * weight.numel())
    states = call.arguments["hx"]
    for state in states if isinstance(states, list | tuple) else [states]:
        if isinstance(state, Tensor):
            call.labels.freeze(state, f"is what {call.op} begins with", call.module)
    return [fixed(shape) for shape in call.shapes]


def recurrent_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Features read."""
    weight = tensors.get("weight_ih_l0", module.weight_ih_l0)
    assert isinstance(weight, Tensor)
    return {"input_size": weight.shape[1]}


class _Filled(Opened):
    """A recurrent layer of full size, for which what is not computed is zero: torch keeps its weights in a list."""

    def __init__(self, module: nn.Module, layer: Layer):
        super().__init__(module)
        self._layout = layout_of(layer, "weight_ih_l0", 1)

    def _filled(self, inputs: Tensor) -> Tensor:
        raise AssertionError("abstract")

    def forward(self, inputs: Tensor, *states: Any, **options: Any) -> Any:
        """What the layer gives."""
        return self.module(self._filled(inputs), *states, **options)


class CompactRecurrent(_Filled):
    """Reads the active features."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, CompactWidth]):
        super().__init__(module, layer)
        self._axis = CompactAxis(self._layout, widths)

    def _filled(self, inputs: Tensor) -> Tensor:
        active = self._axis.take(torch.arange(self.module.input_size, device=inputs.device), 0)
        whole = inputs.new_zeros(*inputs.shape[:-1], self.module.input_size)
        return whole.index_copy(-1, active, inputs)


class DenseRecurrent(_Filled):
    """Reads all features, of which only the active ones count."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module, layer)
        self._axis = DenseAxis(self._layout, widths)

    def _filled(self, inputs: Tensor) -> Tensor:
        return self._axis.mask(inputs, -1)


class MaskedRecurrent(_Filled):
    """Reads the features that an architecture keeps."""

    def __init__(self, module: nn.Module, layer: Layer, sizes: Mapping[str, int]):
        super().__init__(module, layer)
        assert self._layout is not None
        self._kept = torch.as_tensor(positions_of(self._layout, sizes))

    def _filled(self, inputs: Tensor) -> Tensor:
        kept = self._kept.to(inputs.device)
        return torch.zeros_like(inputs).index_copy(-1, kept, inputs.index_select(-1, kept))


LABELS = dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent)
KINDS = {
    "recurrent": Kind(
        recurrent_numbers, CompactRecurrent, DenseRecurrent, reads=dict.fromkeys(_READS, 1), masked=MaskedRecurrent
    )
}
