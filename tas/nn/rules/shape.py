"""Everything without parameters: activations, sums and products, pooling, and data movement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tas.nn.labels import FIXED, condense, expanded, fixed, spread, varying_dims
from tas.nn.rules.base import Call, Constant, positions_in
from tas.nn.rules.channel_norm import in_own_norm
from tas.nn.rules.parameter import bind


def elementwise(call: Call) -> Any:
    """Merge the labels of all operands position by position; parameters are cut with the channels they meet."""
    tensors, shape = call.label_tensors(), call.shape
    if not tensors:
        return fixed(shape)
    whole = _whole(tensors, tensors, shape)
    if not whole:  # every channel of one meets every channel of another, which stays
        whole = _whole(tensors, [max(tensors, key=lambda labels: condense(labels).unique().numel())], shape)
    for tensor in tensors:
        if not any(tensor is other for other in whole):
            call.labels.freeze(tensor, "one channel acts on many (it is broadcast over channels)", call.module)
    result = whole[0].expand(shape)
    for other in whole[1:]:
        call.labels.union(result, other, call.module)
        if bool((result == FIXED).any()):
            result = torch.where(result == FIXED, other, result)
    for constant in call.constants():
        problem = bind(call, constant, result)
        if problem:
            return call.refuse(problem)
    return result


def _whole(tensors: list[Tensor], like: list[Tensor], shape: tuple[int, ...]) -> list[Tensor]:
    """Those that are as long as the result wherever some others have different channels."""
    varying = {dim - tensor.dim() for tensor in like for dim in varying_dims(tensor)}  # counted from the right
    return [t for t in tensors if all(-dim <= t.dim() and t.shape[dim] == shape[dim] for dim in varying)]


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
    """Mean, sum, maximum over some dimensions: over channels in a norm alone, or where each has several positions."""
    inputs = call.label_tensors()[0]
    dims = call.arguments.get("dim")
    dims = list(range(inputs.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    dims = [dim % inputs.dim() for dim in dims]
    varying = varying_dims(inputs)
    if set(dims) & set(varying):
        if set(varying) <= set(dims):
            if not in_own_norm(call, inputs):
                return call.refuse(f"is reduced over channels by {call.op}")
            results = [fixed(shape) for shape in call.shapes]
            return results[0] if len(results) == 1 else results
        call.labels.merge_along(inputs, set(dims) & set(varying), call.module)
    keeps = bool(call.arguments.get("keepdim", False))
    for dim in sorted(dims, reverse=True):
        inputs = inputs.narrow(dim, 0, 1) if keeps else inputs.select(dim, 0)
    return inputs if len(call.shapes) == 1 else [inputs.expand(shape) for shape in call.shapes]


def along(call: Call) -> Any:
    """Softmax, running sums, the largest of a row: pass unless they run over channels."""
    inputs = call.label_tensors()[0]
    dim, varying = call.arguments["dim"] % inputs.dim(), varying_dims(inputs)
    if dim in varying:
        if len(varying) == 1:
            return call.refuse(f"{call.op} runs over channels")
        call.labels.merge_along(inputs, [dim], call.module)
    row = inputs.narrow(dim, 0, 1)
    results = [inputs if tuple(inputs.shape) == shape else row.expand(shape) for shape in call.shapes]
    return results[0] if len(results) == 1 else results


def larger(call: Call) -> Any:
    """The largest of a row, or the larger of two, position by position."""
    return elementwise(call) if "other" in call.arguments else reduction(call)


def folded(call: Call) -> Any:
    """The positions of a window, in a row, become one channel again."""
    inputs = call.label_tensors()[0]
    if any(dim != 1 for dim in varying_dims(inputs)):
        return call.refuse(f"{call.op} runs over positions that hold different channels")
    rows = call.labels.channel_vector(inputs, 1).view(call.shape[1], -1)
    call.labels.union(rows, rows[:, :1], call.module)
    return spread(rows[:, 0], 1, call.shape)


def shuffled(call: Call) -> Any:
    """One channel of every group after the other: the groups are cut alike."""
    grid = call.labels.channel_vector(call.label_tensors()[0], 1).view(call.arguments["groups"], -1)
    call.labels.union(grid, grid[:1], call.module)
    return spread(grid.t().flatten(), 1, call.shape)


def gated(call: Call) -> Any:
    """One half times the sigmoid of the other: both are cut alike."""
    inputs = call.label_tensors()[0]
    halves = inputs.chunk(2, call.arguments["dim"])
    call.labels.union(halves[0], halves[1], call.module)
    return halves[0]


def windows(call: Call) -> Any:
    """Every channel becomes a row of positions, one per pixel of the window."""
    inputs = call.label_tensors()[0]
    if any(dim != 1 for dim in varying_dims(inputs)):
        return call.refuse(f"{call.op} runs over positions that hold different channels")
    vector = call.labels.channel_vector(inputs, 1)
    return spread(vector.repeat_interleave(call.shape[1] // len(vector)), 1, call.shape)


def sampled(call: Call) -> Any:
    """Every channel is read at other positions."""
    inputs, grid = call.arguments["input"], call.arguments["grid"]
    if not isinstance(inputs, Tensor) or any(dim != 1 for dim in varying_dims(inputs)):
        return call.refuse("is sampled over positions that hold different channels")
    if isinstance(grid, Tensor) and varying_dims(grid):
        return call.refuse("says where to sample")
    return spread(call.labels.channel_vector(inputs, 1), 1, call.shape)


def made_anew(call: Call) -> Any:
    """What only has its size from the input holds no channels: a constant."""
    return Constant(
        None,
        call.shape,
        lambda: [("", positions_in(call.shape))],
        lambda: getattr(torch.ops.aten, call.op)(**call.example()),
    )


def pixel_shuffled(call: Call) -> Any:
    """Channels become pixels of fewer channels; those of one are cut alike, also where nothing else merges them."""
    moved, dim = expanded(move(call)), len(call.shape) - 3
    if varying_dims(call.label_tensors()[0]) != [dim]:
        return movement(call)
    return spread(call.labels.channel_vector(moved, dim), dim, call.shape)


_LIKE_ANOTHER = ("view_as", "reshape_as")
_SPLITS = ("split", "split_with_sizes", "chunk", "slice", "select", "narrow", "unbind", "tensor_split", "index")


def movement(call: Call) -> Any:
    """Do to the labels what the operation does to the values."""
    if call.op == "cat":
        return _concatenation(call)
    whole = call.arguments.get("self")
    if call.op == "expand_as" and isinstance(whole, Tensor) and not varying_dims(whole):
        return elementwise(call)  # one number for all channels of the other
    moved = move(call)
    is_list = isinstance(moved, list | tuple)
    results = [expanded(result) for result in (moved if is_list else [moved])]
    if [tuple(result.shape) for result in results] != call.shapes:
        return call.refuse(f"{call.op} is called in a way that has no rule")
    if call.op in _SPLITS and not _is_even(call, results):
        return call.refuse(f"{call.op} takes some of the channels by number")
    for result in results:
        if len(varying_dims(result)) > 1:
            call.labels.expect_grid(result)
    like = call.arguments.get("other")
    if call.op in _LIKE_ANOTHER and isinstance(like, Tensor) and varying_dims(results[0]) in ([], varying_dims(like)):
        call.labels.union(results[0], like, call.module)  # it has to have as many channels
    return results if is_list else results[0]


def _is_even(call: Call, results: list[Tensor]) -> bool:
    """Whether whatever is cut, this gives the same parts; merges what must be cut alike for that."""
    whole = call.label_tensors()[0]
    dim = call.arguments.get("dim", 0) % whole.dim()
    varying = varying_dims(whole)
    if call.op == "index":
        dims = [place for place, index in enumerate(call.arguments["indices"]) if index is not None]
        return not set(dims) & set(varying)
    if dim not in varying or all(result.shape == whole.shape for result in results):
        return True
    if call.op == "select":
        return len(varying) > 1 and _merged(call, whole, dim)
    if len(varying) == 1 and _follows_numbers(call, [result.shape[dim] for result in results], whole.shape[dim]):
        return True
    if len(varying) > 1:  # each of the others stands for several positions here
        return _merged(call, whole, dim)
    if len(results) < 2 or any(result.shape != results[0].shape for result in results):
        return False
    for result in results[1:]:
        call.labels.union(results[0], result, call.module)
    return True


def _merged(call: Call, labels: Tensor, dim: int) -> bool:
    call.labels.merge_along(labels, [dim], call.module)
    return True


def _follows_numbers(call: Call, sizes: list[int], whole: int) -> bool:
    """Whether uneven parts are cut off at numbers that the module keeps, which then follow the widths."""
    values = vars(call.model.get_submodule(call.module)).values()
    known = {value for value in values if type(value) is int}
    known |= {item for value in values if isinstance(value, list | tuple) for item in value if type(item) is int}
    if call.op == "split_with_sizes":
        return len(set(sizes)) > 1 and known >= set(sizes)
    if call.op in ("slice", "narrow"):
        start = call.arguments.get("start") or 0
        end = start + sizes[0]
        return all(number in (0, whole) or number in known for number in (start, end))
    return False


def _concatenation(call: Call) -> Any:
    """Over channels: one after the other. Over positions: all hold the same channels, a class token too."""
    items, shape = list(call.arguments["tensors"]), call.shape
    dim = call.arguments.get("dim", 0) % len(shape)
    # torch ignores empty vectors; a part may have no positions, as before the tokens that turn
    items = [item for item in items if len(item.shape) == len(shape) and item.shape[dim]]
    tensors = [item for item in items if isinstance(item, Tensor)]
    if (
        not tensors
        or not any(varying_dims(tensor) for tensor in tensors)
        or any(dim in varying_dims(tensor) for tensor in tensors)
    ):
        return _concatenate([_as_labels(item) for item in items], dim)
    first = next(tensor for tensor in tensors if varying_dims(tensor)).narrow(dim, 0, 1)
    for item in items:
        if isinstance(item, Tensor):
            call.labels.union(first, item.narrow(dim, 0, 1), call.module)
        else:
            size = list(shape)
            size[dim] = item.shape[dim]
            problem = bind(call, item, first.expand(size))
            if problem:
                return call.refuse(problem)
    return first.expand(shape)


def move(call: Call) -> Any:
    """What the operation makes of the tensors in its arguments, which may be labels or numbers of elements."""
    values = dict(call.arguments)
    if call.op == "index":
        return values["self"][tuple(slice(None) if i is None else i.value() for i in values["indices"])]
    if call.op in ("pad", "constant_pad_nd"):
        return _pad(values["self"], list(values["pad"]))
    operation = getattr(torch.ops.aten, call.op)
    arguments = {name: _as_labels(value) if not isinstance(value, list) else value for name, value in values.items()}
    if call.op in _LIKE_ANOTHER:
        return values["self"].reshape(call.shape)
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
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    for other in range(len(shape)):
        if other != dim and all(tensor.stride(other) == 0 or tensor.shape[other] == 1 for tensor in tensors):
            tensors = [tensor.narrow(other, 0, min(1, tensor.shape[other])) for tensor in tensors]
    return torch.cat(tensors, dim).expand(shape)


_ELEMENTWISE = """
    add sub mul div relu relu6 hardtanh silu sigmoid gelu hardswish hardsigmoid leaky_relu elu celu selu tanh mish
    softplus log_sigmoid softsign exp log abs neg sqrt rsqrt pow clamp clamp_min clamp_max dropout feature_dropout
    alpha_dropout clone contiguous to _to_copy type_as detach alias identity positive minimum maximum where
    lift_fresh_copy square floor bernoulli rand_like zeros_like ones_like full_like lerp addcmul reciprocal erf sin
    sign logical_not eq ne gt lt ge le threshold rrelu masked_fill rsub addcdiv cos tan asin acos atan sinh cosh exp2
    expm1 log1p log2 log10 logit softshrink hardshrink round ceil trunc frac nan_to_num randn_like empty_like isnan
    isinf isfinite logical_and logical_or logical_xor erfc atan2 hypot fmod remainder float_power true_divide
    multiply subtract divide negative absolute clip fmax fmin
"""
_POOLING = """
    avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d max_pool1d
    adaptive_avg_pool1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest1d upsample_linear1d
    upsample_nearest3d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa lp_pool2d avg_pool3d
    max_pool3d adaptive_avg_pool3d adaptive_max_pool3d adaptive_max_pool1d reflection_pad2d replication_pad2d
"""
_MOVEMENT = """
    view reshape flatten unflatten permute transpose t squeeze unsqueeze slice select narrow split split_with_sizes
    chunk tensor_split unbind expand expand_as repeat cat stack roll flip pad constant_pad_nd _unsafe_view movedim
    swapaxes numpy_T pixel_unshuffle index repeat_interleave
    reshape_as view_as broadcast_to tile moveaxis swapdims ravel unfold
"""
_REDUCTIONS = """
    mean sum amax amin norm linalg_vector_norm std var std_mean var_mean median logsumexp prod
"""
_ALONG = "softmax log_softmax _softmax _log_softmax cumsum logcumsumexp sort topk"
LABELS = (
    dict.fromkeys(_ELEMENTWISE.split(), elementwise)
    | dict.fromkeys(_POOLING.split(), pooling)
    | dict.fromkeys(_MOVEMENT.split(), movement)
    | dict.fromkeys(_REDUCTIONS.split(), reduction)
    | dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), made_anew)
    | dict.fromkeys(("max", "min"), larger)
    | {"glu": gated, "im2col": windows, "col2im": folded, "channel_shuffle": shuffled, "pixel_shuffle": pixel_shuffled}
    | {"grid_sampler": sampled}
    | dict.fromkeys(_ALONG.split(), along)
)
