"""Batch norm: passes channels on; behind a convolution it holds one affine per candidate and mixes the fragments.

Instance norm, which knows no other channels either, passes them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.graph import Layer, whole_width
from tas.nn import few_channels
from tas.nn.mixed_norm import MixedNorm
from tas.nn.mixing import CompactAxis, CompactWidth, DenseAxis, DenseWidth
from tas.nn.rules.base import Call, Constant, Kind, layout_of
from tas.nn.rules.opened import CompactLayer, DenseLayer, Opened, call_with
from tas.nn.sync_batch_norm import is_synchronized


def batch_norm(call: Call) -> Any:
    """Pass the channels on; every vector of the norm is cut with them."""
    inputs = call.arguments["input"]
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = [call.arguments[name] for name in names if isinstance(call.arguments[name], Constant)]
    owner, kind = call.model.get_submodule(call.module), call.op
    if not isinstance(
        owner, nn.modules.batchnorm._BatchNorm if kind == "batch_norm" else nn.modules.batchnorm._NormBase
    ):
        return call.refuse(f"is normalised by {type(owner).__name__}, which has no rule")
    if not isinstance(inputs, Tensor) or any(
        t.name is None or t.name.rpartition(".")[0] != call.module for t in tensors
    ):
        return call.refuse("is normalised with tensors computed in forward")
    channels = call.labels.channel_vector(inputs, 1)
    for tensor in tensors:
        assert tensor.name is not None
        call.labels.attach(tensor.name, 0, channels)
    call.draft(kind).makers.append(call.maker)
    return inputs


def norm_numbers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Channel number, from whichever tensor there is."""
    known = [tensors.get(name, getattr(module, name)) for name in ("weight", "running_mean")]
    sizes = [len(value) for value in known if value is not None]
    return {"num_features": sizes[0]} if sizes else {}


class OpenBatchNorm(Opened):
    """What both executions share: statistics of all channels, and an affine per candidate where fragments are mixed."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, Any]):
        super().__init__(module)
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        self._layout = layout_of(layer, "weight", 0) or layout_of(layer, "running_mean", 0)
        whole = whole_width(self._layout)
        self._copies = whole.copies if whole else 1
        self.width_name = whole.width if whole and layer.mixed_by == layer.name else None
        self.width = widths[self.width_name] if self.width_name is not None else None
        # per candidate: the released code gives every candidate a norm of its own
        self.scales = self.shifts = None
        self.affines: MixedAffines | None = None  # by which that of the mixture may be made
        if self.width is not None and module.affine:
            count = len(self.width.candidates)
            weight, bias = module.weight, module.bias
            self.scales = nn.Parameter(weight.detach().repeat(count, 1), requires_grad=weight.requires_grad)
            self.shifts = nn.Parameter(bias.detach().repeat(count, 1), requires_grad=bias.requires_grad)
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)
            module.affine = False  # torch's reset_parameters asks

    @property
    def is_single(self) -> bool:
        """Whether the channels of its width stand here once."""
        return self._copies == 1

    def _momentum(self) -> float:
        """Share of the new statistics; counts the batch as torch's own module does."""
        module = self.module
        if not self.training or module.running_mean is None:
            return 0.0
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
        return module.momentum if module.momentum is not None else 1.0 / float(module.num_batches_tracked)

    def _normalise(self, inputs: Tensor, mean: Any, variance: Any, scale: Any, shift: Any) -> Tensor:
        momentum = self._momentum()
        uses_batch = self.training or mean is None
        return few_channels.batch_norm(inputs, mean, variance, scale, shift, uses_batch, momentum, self.module.eps)

    def _finish(self, outputs: Tensor) -> Tensor:
        """What a subclass with modules of its own (timm's norm with activation) does after the norm."""
        for child in self.module.children():
            outputs = child(outputs)
        return outputs

    def reset_affine(self) -> None:
        """Scale one and shift zero for every candidate."""
        if self.scales is not None and self.shifts is not None:
            nn.init.ones_(self.scales)
            nn.init.zeros_(self.shifts)

    def restore(self, candidate: int) -> None:
        """Give the module the affine of one candidate, in full shape."""
        if self.scales is not None and self.shifts is not None:
            self.module.affine = True
            self.module.weight = nn.Parameter(self.scales[candidate].detach().clone(), self.scales.requires_grad)
            self.module.bias = nn.Parameter(self.shifts[candidate].detach().clone(), self.shifts.requires_grad)

    def _per_copy(self, values: Tensor | None) -> Tensor | None:
        """(candidates, channels of all copies) to (candidates, copies, channels) where there are several."""
        return values if values is None or self._copies == 1 else values.unflatten(1, (self._copies, -1))

    def _mixed(self, inputs: Tensor, mean: Any, variance: Any, *, fused: bool) -> Tensor:
        """The norm, affine, interpolation and sum of all fragments."""
        assert self.width is not None
        if self.affines is not None and self in self.affines.made:
            return self._normalise(inputs, mean, variance, *self.affines.made[self])
        held = self._per_copy(self.scales), self._per_copy(self.shifts)
        if self.width.how == "none":  # channels do not mix: the sum is an affine of the norm's own
            like = inputs.new_empty(0, dtype=torch.promote_types(inputs.dtype, torch.float32))
            affine = self.width.affine(*held, like)
            if self._copies > 1:
                affine = [None if value is None else value.expand(self._copies, -1).flatten() for value in affine]
            return self._normalise(inputs, mean, variance, *affine)
        matrix, shift = self.width.mixture(*held, inputs)
        matrix = matrix.expand(self._copies, *matrix.shape[-2:]).flatten(0, 1)[:, :, None, None]
        shift = None if shift is None else shift.flatten()
        pixels = _as_image(inputs)
        if fused and (self.training or mean is None) and not is_synchronized():
            mixed = MixedNorm.apply(pixels, matrix, shift, mean, variance, self._momentum(), self.module.eps)
        else:
            mixed = F.conv2d(self._normalise(pixels, mean, variance, None, None), matrix, shift, groups=self._copies)
        return mixed if mixed.dim() == inputs.dim() else mixed.view(inputs.shape)


def _as_image(inputs: Tensor) -> Tensor:
    """(batch, channels, …) with two dimensions behind the channels; the tensor itself where it has two."""
    if inputs.dim() == 4:
        return inputs
    return inputs.flatten(2)[..., None] if inputs.dim() > 2 else inputs[..., None, None]


def _write_back(axis: CompactAxis, held: tuple[Any, Any], updated: tuple[Any, Any]) -> None:
    """Statistics that were gathered (not a prefix) are copies: put them back."""
    for whole, part in zip(held, updated, strict=True):
        if whole is not None and part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            axis.put(whole, part)


class CompactBatchNorm(OpenBatchNorm):
    """Batch norm over the drawn channels.

    Channel j of every fragment is the same convolution output, so all candidates share their statistics.
    """

    width: CompactWidth | None

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, CompactWidth]):
        super().__init__(module, layer, widths)
        self._axis = CompactAxis(self._layout, widths)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, active channels, …), same shape out."""
        module, width = self.module, self.width
        held = module.running_mean, module.running_var
        mean, variance = (None if value is None else self._axis.take(value, 0) for value in held)
        if width is None:
            affine = [None if value is None else self._axis.take(value, 0) for value in (module.weight, module.bias)]
            mixed = self._normalise(inputs, mean, variance, *affine)
        elif width.weights is None:
            index, size = width.chosen[0], width.active
            held_affine = self._per_copy(self.scales), self._per_copy(self.shifts)
            affine = [None if value is None else value[index, ..., :size].flatten() for value in held_affine]
            mixed = self._normalise(inputs, mean, variance, *affine)
        else:
            mixed = self._mixed(inputs, mean, variance, fused=True)
        if self.training:
            _write_back(self._axis, held, (mean, variance))
        return self._finish(mixed)


class DenseBatchNorm(OpenBatchNorm):
    """Batch norm over all channels, followed by the mixture, which switches the inactive ones off."""

    width: DenseWidth | None

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, DenseWidth]):
        super().__init__(module, layer, widths)
        self._axis = DenseAxis(self._layout, widths)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, all channels, …), same shape out."""
        module, width = self.module, self.width
        held = module.running_mean, module.running_var
        mean, variance = (value.clone() if value is not None and self.training else value for value in held)
        if width is None:
            result = self._normalise(inputs, mean, variance, module.weight, module.bias)
        else:
            result = self._mixed(inputs, mean, variance, fused=False)
        for whole, new in zip(held, (mean, variance), strict=True):
            if self.training and whole is not None and new is not None:
                # channels that are off keep their statistics, as in compact
                whole.copy_(torch.where(self._axis.mask(torch.ones_like(whole), 0) > 0, new, whole))
        return self._finish(result)


class MixedAffines:
    """The affines of all batch norms that mix fragments without interpolation, made together for a forward.

    A norm alone takes ten small operations for its own and as many for their gradients: of small images, longer than
    the norm itself. What was made stays until other sizes are open: a checkpoint computes parts of a forward again.
    """

    def __init__(self, model: nn.Module):
        self.made: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._groups: dict[Any, list[Any]] = {}
        self._tables: dict[Any, tuple[Tensor, Tensor]] = {}
        for norm in model.modules():
            if isinstance(norm, CompactBatchNorm) and norm.scales is not None and norm.is_single:
                key = (len(norm.scales), norm.scales.dtype, norm.scales.device)
                self._groups.setdefault(key, []).append(norm)
                norm.affines = self

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made, which carries gradients and cannot be copied."""
        return {**vars(self), "made": {}}

    def make(self) -> None:
        """For what is drawn now; nothing where fragments are interpolated, or one architecture is fixed."""
        self.made = {}
        for norms in self._groups.values():
            if all(norm.width.weights is not None and norm.width.how == "none" for norm in norms):
                self._make(norms)

    def _make(self, norms: Sequence[Any]) -> None:
        held = torch.cat([norm.scales for norm in norms] + [norm.shifts for norm in norms], 1)
        held = held.to(torch.promote_types(held.dtype, torch.float32))
        widths = list(dict.fromkeys(norm.width for norm in norms))
        rows, is_open = self._tables_of(norms, widths, held)
        drawn = torch.stack([width.weights for width in widths]).to(held)
        chosen = torch.tensor([width.chosen for width in widths], device=held.device)
        weights = drawn.new_zeros(len(widths), len(held)).scatter(1, chosen, drawn)  # (widths, candidates)
        mixed = (held * (weights.T.index_select(1, rows) * is_open)).sum(0)
        sizes = [size for norm in norms for size in (norm.width.active, norm.scales.shape[1] - norm.width.active)]
        parts = mixed.split(sizes * 2)[::2]  # the channels that are open, and not those that are not
        self.made = self.made | dict(
            zip(norms, zip(parts[: len(norms)], parts[len(norms) :], strict=True), strict=True)
        )

    def _tables_of(self, norms: Sequence[Any], widths: Sequence[CompactWidth], like: Tensor) -> tuple[Tensor, Tensor]:
        """Of all channels of all scales, then of all shifts: the row of their width, and which candidates have them."""
        key = (len(like), like.dtype, like.device)
        if key not in self._tables:
            counts = torch.tensor([norm.scales.shape[1] for norm in norms])
            rows = torch.tensor([widths.index(norm.width) for norm in norms]).repeat_interleave(counts)
            channels = torch.cat([torch.arange(count) for count in counts.tolist()])
            is_open = channels < torch.tensor([width.candidates for width in widths])[rows].T
            with torch.inference_mode(False):  # with gradients: what is kept may serve a pass that needs them
                self._tables[key] = rows.repeat(2).to(like.device), is_open.repeat(1, 2).to(like)
        return self._tables[key]


class CompactInstanceNorm(CompactLayer):
    """Instance norm over the drawn channels."""

    def __init__(self, module: nn.Module, layer: Layer, widths: dict[str, CompactWidth]):
        super().__init__(module, layer, widths, norm_numbers)
        self._axis = CompactAxis(layout_of(layer, "running_mean", 0), widths)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, active channels, …), same shape out."""
        module, tensors = self.module, self._tensors.of(self.module)
        outputs = call_with(module, tensors, norm_numbers(module, tensors), inputs)
        if self.training and module.running_mean is not None:
            held = module.running_mean, module.running_var
            _write_back(self._axis, held, (tensors["running_mean"], tensors["running_var"]))
        return outputs


LABELS = {"batch_norm": batch_norm, "instance_norm": batch_norm}
KINDS = {
    "batch_norm": Kind(norm_numbers, CompactBatchNorm, DenseBatchNorm),
    "instance_norm": Kind(norm_numbers, CompactInstanceNorm, DenseLayer),
}
