"""Everything without parameters: activations, sums and products, pooling, and data movement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tas.nn.labels import FIXED, fixed, spread, varying_dims
from tas.nn.rules.base import Call, Constant


def elementwise(call: Call) -> Any:
    """Merge the labels of all operands position by position; constants must not differ between channels."""
    tensors, shape = call.label_tensors(), call.shape
    if not tensors:
        return fixed(shape)
    varying = {dim - tensor.dim() for tensor in tensors for dim in varying_dims(tensor)}  # counted from the right
    for constant in call.constants():
        if any(-dim <= len(constant.shape) and constant.shape[dim] > 1 for dim in varying):
            what = constant.name or "a tensor made in forward"
            return call.refuse(f"is combined with {what}, which differs between channels")
    whole = [t for t in tensors if all(-dim <= t.dim() and t.shape[dim] == shape[dim] for dim in varying)]
    for tensor in tensors:
        if not any(tensor is other for other in whole):
            call.labels.freeze(tensor, "one channel acts on many (it is broadcast over channels)", call.module)
    if not whole:
        return call.refuse("operands are broadcast against each other over channels")
    result = whole[0].expand(shape)
    for other in whole[1:]:
        call.labels.union(result, other, call.module)
        if bool((result == FIXED).any()):
            result = torch.where(result == FIXED, other, result)
    return result


def pooling(call: Call) -> Any:
    """Pass channels on while the trailing dimensions change their size."""
    inputs = call.label_tensors()[0]
    spatial = len(call.shape) - 2
    if any(dim >= inputs.dim() - spatial for dim in varying_dims(inputs)):
        return call.refuse(f"is pooled by {call.op} over positions that hold different channels")
    vector = call.labels.channel_vector(inputs, 1)
    results = [spread(vector, 1, shape) for shape in call.shapes]
    return results[0] if len(results) == 1 else results


def reduction(call: Call) -> Any:
    """Mean, sum, maximum over some dimensions: those must not hold different channels."""
    inputs = call.label_tensors()[0]
    dims = call.arguments.get("dim")
    dims = list(range(inputs.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % inputs.dim() for dim in dims]
    if set(dims) & set(varying_dims(inputs)):
        return call.refuse(f"is reduced over channels by {call.op}")
    keeps = bool(call.arguments.get("keepdim", False))
    for dim in sorted(dims, reverse=True):
        inputs = inputs.narrow(dim, 0, 1) if keeps else inputs.select(dim, 0)
    return inputs if len(call.shapes) == 1 else [inputs.expand(shape) for shape in call.shapes]


def along(call: Call) -> Any:
    """Softmax and the like: pass unless they run over channels."""
    inputs = call.label_tensors()[0]
    if call.arguments["dim"] % inputs.dim() in varying_dims(inputs):
        return call.refuse(f"{call.op} runs over channels")
    return inputs


def movement(call: Call) -> Any:
    """Do to the labels what the operation does to the values."""
    before = {dim for tensor in call.label_tensors() for dim in varying_dims(tensor)}
    moved = _move(call)
    results = list(moved) if isinstance(moved, list | tuple) else [moved]
    if [tuple(result.shape) for result in results] != call.shapes:
        return call.refuse(f"{call.op} is called in a way that has no rule")
    if call.op in ("view", "reshape", "unflatten", "_unsafe_view"):
        if any(len(varying_dims(result)) > max(1, len(before)) for result in results):
            return call.refuse(f"{call.op} splits the channels over several dimensions")
    elif call.op in ("split", "split_with_sizes", "chunk", "slice", "select", "narrow", "unbind", "tensor_split"):
        # the numbers stand in the user's code and would not follow a cut
        whole = call.label_tensors()[0]
        dim = call.arguments.get("dim", 0) % whole.dim()
        if dim in varying_dims(whole) and any(r.shape != whole.shape for r in results):
            return call.refuse(f"{call.op} takes some of the channels by number")
    return moved


def _move(call: Call) -> Any:
    values = dict(call.arguments)
    if call.op == "cat":
        return _concatenate([_as_labels(item) for item in values["tensors"]], values.get("dim", 0))
    if call.op in ("pad", "constant_pad_nd"):
        return _pad(values["self"], list(values["pad"]))
    operation = getattr(torch.ops.aten, call.op)
    arguments = {name: _as_labels(value) if not isinstance(value, list) else value for name, value in values.items()}
    if call.op in ("view", "_unsafe_view"):  # labels are expanded where values are not: a view may need a copy
        return values["self"].reshape(values["size"])
    if call.op == "stack":
        arguments["tensors"] = [_as_labels(item) for item in values["tensors"]]
    return operation(**arguments)


def _pad(labels: Tensor, amounts: list[int]) -> Tensor:
    """Padded pixels belong to their channel; padded channels are nobody's."""
    for place in range(len(amounts) // 2):
        dim, before, after = labels.dim() - 1 - place, amounts[2 * place], amounts[2 * place + 1]
        if dim in varying_dims(labels):
            labels = torch.nn.functional.pad(labels, [0, 0] * place + [before, after], value=FIXED)
        else:
            shape = list(labels.shape)
            shape[dim] += before + after
            labels = labels.narrow(dim, 0, 1).expand(shape)
    return labels


def _as_labels(value: Any) -> Any:
    return fixed(value.shape) if isinstance(value, Constant) else value


def _concatenate(tensors: list[Tensor], dim: int) -> Tensor:
    """Concatenation that does not copy what is expanded in all of them."""
    dim %= tensors[0].dim()
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    for other in range(len(shape)):
        if other != dim and all(tensor.stride(other) == 0 or tensor.shape[other] == 1 for tensor in tensors):
            tensors = [tensor.narrow(other, 0, min(1, tensor.shape[other])) for tensor in tensors]
    return torch.cat(tensors, dim).expand(shape)


def unknown(call: Call) -> Any:
    """Freeze what nobody has a rule for."""
    return call.refuse(f"passes the operation {call.op}, which has no rule")


_ELEMENTWISE = """
    add sub mul div relu relu6 hardtanh silu sigmoid gelu hardswish hardsigmoid leaky_relu elu celu selu tanh mish
    softplus log_sigmoid softsign exp log abs neg sqrt rsqrt pow clamp clamp_min clamp_max dropout feature_dropout
    alpha_dropout clone contiguous to _to_copy type_as detach alias identity positive minimum maximum where
    lift_fresh_copy square floor bernoulli rand_like zeros_like ones_like full_like lerp addcmul reciprocal erf sin
    cos sign logical_not eq ne gt lt ge le threshold rrelu
"""
_POOLING = """
    avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d max_pool1d
    adaptive_avg_pool1d upsample_nearest2d upsample_bilinear2d lp_pool2d
"""
_MOVEMENT = """
    view reshape flatten unflatten permute transpose t squeeze unsqueeze slice select narrow split split_with_sizes
    chunk tensor_split unbind expand expand_as repeat cat stack roll flip pad constant_pad_nd _unsafe_view movedim
    swapaxes numpy_T pixel_shuffle pixel_unshuffle
"""
LABELS = (
    dict.fromkeys(_ELEMENTWISE.split(), elementwise)
    | dict.fromkeys(_POOLING.split(), pooling)
    | dict.fromkeys(_MOVEMENT.split(), movement)
    | dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm"), reduction)
    | dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), along)
)
