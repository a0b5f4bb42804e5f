"""Attention: what is cut there is a whole head."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.graph import Layer
from tas.nn.labels import spread, varying_dims
from tas.nn.mixing import DenseAxis
from tas.nn.paths import joined
from tas.nn.rules.base import Call, Constant, Kind, layout_of
from tas.nn.rules.opened import ActiveTensors, Opened
from tas.nn.rules.parameter import learned
from tas.nn.rules.products import contraction, sum_call
from tas.nn.rules.projection import MixedWidth, connect_linear, fold
from tas.nn.rules.projection import linear as plain_linear
from tas.nn.rules.shape import elementwise


def attention(call: Call) -> Any:
    """Scaled dot-product attention: two products, with the softmax over the keys between them."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    if any(isinstance(item, Constant) for item in (query, key, value)) or call.arguments.get("enable_gqa"):
        return call.refuse("attention with a constant, or with fewer keys than queries, has no rule")
    front = "abcdef"[: query.dim() - 2]
    shape = call.shapes[0]
    weights = (*torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]), query.shape[-2], key.shape[-2])
    call.shapes = [weights]
    scores = contraction(call, query, key, (f"{front}nk", f"{front}mk", f"{front}nm"))
    if call.arguments.get("attn_mask") is not None:
        scores = elementwise(sum_call(call, [scores, call.arguments["attn_mask"]]))
    call.shapes = [shape]
    return contraction(call, scores, value, (f"{front}nm", f"{front}mv", f"{front}nv"))


def linear(call: Call) -> Any:
    """Linear layers, and the first projections of torch's own attention module, which are none."""
    owner, weight, inputs = (
        call.model.get_submodule(call.module), call.arguments["weight"], call.arguments["input"],
    )  # fmt: skip
    has_own = type(owner).forward in (nn.MultiheadAttention.forward, HeadwiseAttention.forward)
    is_own = has_own and isinstance(weight, Constant)
    name, positions = joined(call.module, "in_proj_weight"), prod(call.shape[:-1]) // call.batch
    if is_own and weight.name == name and isinstance(inputs, Tensor):
        return connect_linear(call, call.draft("attention"), inputs, positions, "in_proj_weight")
    rows = _rows(weight, name) if is_own else None
    if rows is not None:
        return _projection(call, name, rows, positions)
    holder, _, short = (weight.stored_name() or "").rpartition(".") if isinstance(weight, Constant) else ("", "", "")
    if short and isinstance(inputs, Tensor) and not (short == "weight" and _is_layer(call, holder)):
        front = "abcdefgh"[: inputs.dim() - 1]
        return contraction(call, inputs, weight, (f"{front}k", "mk", f"{front}m"))
    return plain_linear(call)


def _is_layer(call: Call, path: str) -> bool:
    return isinstance(call.model.get_submodule(path), nn.Linear | nn.MultiheadAttention)


def _rows(weight: Constant, name: str) -> Tensor | None:
    """Which rows of a matrix a constant consists of, if of rows of this one alone."""
    elements = weight.elements()
    if [owner for owner, _ in elements] != [name]:
        return None
    ((_, places),), length = elements, weight.shape[1]
    rows = places[:, 0] // length
    return rows if torch.equal(places, rows[:, None] * length + torch.arange(length)) else None


def _projection(call: Call, name: str, rows: Tensor, positions: int) -> Any:
    """Labels of the query, or of key and value, where these are not projected together."""
    inputs, weight = call.arguments["input"], call.tensor(name)
    last = len(inputs.shape) - 1
    if isinstance(inputs, Constant):  # a query that is learned, as where attention pools
        inputs = learned(call, inputs, last)
    if set(varying_dims(inputs)) - {last}:
        return call.refuse("linear runs over positions that hold different channels")
    reads = call.labels.channel_vector(inputs, last)
    if (name, 0) not in call.labels.axes:
        call.labels.attach(name, 0, call.labels.fresh(weight.shape[0]))
    makes = torch.as_tensor(call.labels.axes[name, 0])
    bias = joined(call.module, "in_proj_bias")
    if call.tensor(bias) is not None:
        call.labels.attach(bias, 0, makes)
    call.labels.attach(name, 1, reads)
    call.count(call.draft("attention"), positions, (makes[rows], reads))
    return spread(makes[rows], last, call.shape)


def attend(
    module: nn.MultiheadAttention,
    tensors: Mapping[str, Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `nn.MultiheadAttention` computes, for any number of heads and of input channels.

    Args:
        module: whose `out_proj`, `head_dim` and options count.
        tensors: `in_proj_weight` (3 x heads x head_dim, channels) and `in_proj_bias`, heads of the query first.
        query: as of the module's own forward, like all that follows.
        key: likewise.
        value: likewise.
        key_padding_mask: True, or minus infinity, where a key is not to be seen.
        need_weights: whether to return the attention weights.
        attn_mask: added to the scores, or True where not to be seen.
        average_attn_weights: over heads.
        is_causal: a hint that `attn_mask` is causal.
    """
    if query.is_nested:  # torch's encoder cuts the padding off in evaluation, and hands on no mask then
        rows = zip(query.unbind(), key.unbind(), value.unbind(), strict=True)
        outputs = [attend(module, tensors, *row, need_weights=False)[0] for row in rows]
        return torch.nested.as_nested_tensor(outputs), None
    is_single = query.dim() == 2
    if is_single:
        query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
    elif not module.batch_first:
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    weights = tensors["in_proj_weight"].chunk(3)
    bias = tensors["in_proj_bias"]
    biases = (None, None, None) if bias is None else bias.chunk(3)
    projected = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    q, k, v = (x.unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for x in projected)
    mask = _mask(attn_mask, key_padding_mask, q)
    dropout = module.dropout if module.training else 0.0
    if need_weights:
        scores = q @ k.transpose(-2, -1) / module.head_dim**0.5
        seen = (scores if mask is None else scores + mask).softmax(-1)
        outputs = F.dropout(seen, dropout) @ v
    else:
        seen, outputs = None, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    outputs = module.out_proj(outputs.transpose(1, 2).flatten(2))
    if seen is not None and average_attn_weights:
        seen = seen.mean(1)
    if is_single:
        return outputs[0], None if seen is None else seen[0]
    return outputs if module.batch_first else outputs.transpose(0, 1), seen


def _mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, like: Tensor) -> Tensor | None:
    total = None
    for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None, :]):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
        if mask.dim() == 3:  # (batch x heads, queries, keys)
            mask = mask.unflatten(0, (len(like), -1))
        total = mask if total is None else total + mask
    return total


class HeadwiseAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads need not fill the embedding: what a cut one becomes.

    The class torch has insists on heads x head_dim = channels; this one reads both from its tensors.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **options: Any) -> Any:
        """As of `nn.MultiheadAttention`."""
        tensors = {"in_proj_weight": self.in_proj_weight, "in_proj_bias": self.in_proj_bias}
        return attend(self, tensors, query, key, value, *masks, **options)


def attention_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Channels and heads; torch's transformer layers must not take their fast path, which reads them as one."""
    assert isinstance(module, nn.MultiheadAttention)
    weight = tensors.get("in_proj_weight", module.in_proj_weight)
    channels, heads = weight.shape[1], weight.shape[0] // 3 // module.head_dim
    return {
        "embed_dim": channels, "kdim": channels, "vdim": channels, "num_heads": heads, "_qkv_same_embed_dim": False,
    }  # fmt: skip


class OpenAttention(Opened):
    """What both executions share: torch's attention with other projections than its own."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module)
        self._mixed = MixedWidth.of(layer, widths, "in_proj_weight", 0)
        self._qkv_same_embed_dim = False  # torch's encoder layer then calls this, and does not read its tensors

    def _attend(self, given: dict[str, Tensor], inputs: Any, options: dict[str, Any]) -> Any:
        assert isinstance(self.module, nn.MultiheadAttention)
        own = {"in_proj_weight": self.module.in_proj_weight, "in_proj_bias": self.module.in_proj_bias}
        tensors: dict[str, Any] = own | given
        if self._mixed is not None and getattr(self._mixed.width, "weights", None) is not None:
            matrix, _ = self._mixed.width.mixture(None, None, tensors["in_proj_weight"])
            tensors = {n: None if v is None else fold(v, matrix, self._mixed.repeat) for n, v in tensors.items()}
        return attend(self.module, tensors, *inputs, **options)


class CompactAttention(OpenAttention):
    """Attention over the drawn heads."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer, widths)
        self._tensors = ActiveTensors(layer, widths)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Active channels in and out."""
        return self._attend(self._tensors.of(self.module), inputs, options)


class DenseAttention(OpenAttention):
    """Attention over all heads; inactive inputs count as zero, inactive heads are read by nobody."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module, layer, widths)
        self._reads = DenseAxis(layout_of(layer, "in_proj_weight", 1), widths)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Full shapes in and out."""
        weight = self.module.in_proj_weight
        assert isinstance(weight, Tensor)
        return self._attend({"in_proj_weight": self._reads.mask(weight, 1)}, inputs, options)


LABELS = {
    "linear": linear,
    "scaled_dot_product_attention": attention,
}
KINDS = {
    "attention": Kind(
        attention_numbers, CompactAttention, DenseAttention, makes={"in_proj_weight": 0}, reads={"in_proj_weight": 1},
        becomes=HeadwiseAttention,
    ),
}  # fmt: skip
