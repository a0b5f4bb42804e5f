"""Channel-wise interpolation and the weighted sum of network fragments.

A width drawn with sizes a <= b and weights p mixes a layer's output y as

    out = p_a · CWI(N_a(y[:a]), b) + p_b · N_b(y[:b])

where N is the norm with that candidate's own affine. CWI is linear, so the whole is one matrix over channels.
Compact widths compute only the b channels that are drawn; dense ones keep full shapes, zeros above b, and tensors for
every index, so that nothing depends on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.graph import Layout, positions_of

Interpolation = Literal["average", "linear", "none"]
INTERPOLATIONS = ("average", "linear", "none")


def interpolation_matrix(
    sources: int | Tensor, targets: int | Tensor, rows: int, columns: int, *, how: Interpolation = "average", **options
) -> Tensor:
    """Channel-wise interpolation as a matrix.

    Args:
        sources: channels of the fragment.
        targets: channels wanted, at least `sources`.
        rows: height of the matrix; rows from `targets` on are zero.
        columns: width of the matrix; columns from `sources` on are zero.
        how: adaptive average pooling over channels; linear interpolation as torch's `interpolate` has it; or none,
            the channels as they are, followed by zeros.
        options: device and dtype of the result.

    Shape:
        (rows, columns); every one of the first `targets` rows sums to one, except for none.

    Source:
        Dong and Yang, 2019, section 3.1: y_i = mean(x[⌊i·n/m⌋ : ⌈(i+1)·n/m⌉]); they name the linear one too.
    """
    dtype = options.get("dtype") or torch.get_default_dtype()
    row = torch.arange(rows, device=options.get("device"))[:, None]
    column = torch.arange(columns, device=options.get("device"))[None]
    inside = (column < sources) & (row < targets)
    if how == "none":
        return (inside & (column == row)).to(dtype)
    if how == "linear":
        exact = torch.promote_types(dtype, torch.float32)  # half precision has no whole numbers above 256
        place = ((row + 0.5).to(exact) * sources / targets - 0.5).clamp_min(0)
        place = place.clamp_max(sources - 1)
        return ((1 - (place - column).abs()).clamp_min(0) * inside).to(dtype)
    first = row * sources // targets
    last = -(-(row + 1) * sources // targets)
    return (inside & (column >= first) & (column < last)).to(dtype) / (last - first)


@lru_cache(maxsize=4096)
@torch.inference_mode(False)
def _matrix(sources: int, targets: int, how: Interpolation, device: torch.device, dtype: torch.dtype) -> Tensor:
    return interpolation_matrix(sources, targets, targets, sources, how=how, device=device, dtype=dtype)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)
def _openings(
    candidates: tuple[int, ...], chosen: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Which candidates are drawn, (fragments, candidates), and which channels each has, (candidates, most drawn)."""
    places = torch.arange(len(candidates), device=device)
    drawn = (torch.tensor(chosen, device=device)[:, None] == places).to(dtype)
    channels = torch.arange(max(candidates[index] for index in chosen), device=device)
    return drawn, (channels < torch.tensor(candidates, device=device)[:, None]).to(dtype)


class Size(Protocol):
    """How many channels are open now: a number in compact execution, a tensor in dense."""

    @property
    def active(self) -> Any:
        """Channels."""


def as_tensor(size: Size, device: torch.device) -> Tensor:
    """The open size as a tensor, made on the device: a copy would wait for it."""
    active = size.active
    return active.to(device) if isinstance(active, Tensor) else torch.full((), active, device=device)


@dataclass(frozen=True)
class FixedSize:
    """Channels that are never cut."""

    active: int


class CompactWidth:
    """A width of which only the largest drawn size is computed; sizes are Python numbers."""

    def __init__(self, candidates: Sequence[int], how: Interpolation = "average"):
        self.candidates, self.how = tuple(candidates), how
        self._shares: Tensor | None = None
        self.pick(len(candidates) - 1)

    def draw(self, chosen: Sequence[int], weights: Tensor) -> None:
        """Open the candidates with these indices, mixed with these weights."""
        self.chosen, self.weights, self._shares = tuple(chosen), weights, None
        self.active = max(self.candidates[index] for index in self.chosen)

    def pick(self, index: int, device: torch.device | None = None) -> None:
        """Use one candidate alone; its sizes are numbers, which lie nowhere."""
        self.chosen, self.weights, self._shares = (index,), None, None
        self.active = self.candidates[index]

    def mixture(self, scales: Tensor | None, shifts: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixture as a matrix and a shift over the active channels.

        Args:
            scales: (candidates, …, channels), the norm's own scale of every candidate; None for ones. The dimensions
                in between count the copies of the width on an axis, each with its own scale.
            shifts: (candidates, …, channels); None for zeros.
            like: a tensor with the wanted device and dtype.

        Shape:
            (…, active, active) and (…, active); without interpolation (…, active) twice, of the matrix its diagonal.
        """
        assert self.weights is not None
        if self.how == "none":
            return self.affine(scales, shifts, like)
        total, shift = 0, None
        for weight, index in zip(self.weights.to(like.dtype), self.chosen, strict=True):
            size = self.candidates[index]
            part = weight * _matrix(size, self.active, self.how, like.device, like.dtype)
            if shifts is not None:
                moved = shifts[index, ..., :size].to(like.dtype) @ part.T
                shift = moved if shift is None else shift + moved
            if scales is not None:
                part = part * scales[index, ..., None, :size].to(like.dtype)
            total = total + F.pad(part, (0, self.active - size))
        assert isinstance(total, Tensor)
        return total, shift

    def affine(self, scales: Tensor | None, shifts: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixture without interpolation: its matrix is diagonal. Arguments as of `mixture`.

        Shape:
            (…, active) and (…, active).
        """
        shares = self._shares_of(like)
        if scales is None and shifts is None:
            return shares.sum(0), None
        known = next(table for table in (scales, shifts) if table is not None)
        shares = shares.view(len(shares), *[1] * (known.dim() - 2), self.active)
        scale, shift = (
            None if table is None else (table[..., : self.active].to(like.dtype) * shares).sum(0)
            for table in (scales, shifts)
        )
        return shares.sum(0) if scale is None else scale, shift

    def _shares_of(self, like: Tensor) -> Tensor:
        """The weight of every candidate in every active channel, (candidates, active); made once per draw.

        With the zeros of those not drawn: one product and one sum take less time than the slices and paddings of two.
        """
        assert self.weights is not None
        if self._shares is None or (self._shares.dtype, self._shares.device) != (like.dtype, like.device):
            drawn, is_open = _openings(self.candidates, self.chosen, like.device, like.dtype)
            with torch.inference_mode(False):  # with gradients: what is kept may serve a pass that needs them
                self._shares = (self.weights.to(like) @ drawn)[:, None] * is_open
        return self._shares


class DenseWidth:
    """A width with full shapes, `size` channels: indices, sizes and weights are tensors."""

    def __init__(self, candidates: Sequence[int], size: int, how: Interpolation = "average"):
        self.candidates, self.how = tuple(candidates), how
        self.size = size
        self._table = torch.tensor(self.candidates)
        self.pick(len(candidates) - 1, self._table.device)

    def draw(self, chosen: Tensor, weights: Tensor) -> None:
        """Open the candidates with these indices, mixed with these weights; both of shape (fragments,)."""
        self._table = self._table.to(chosen.device)
        self.chosen, self.weights = chosen, weights
        self.sizes = self._table[chosen]
        self.active = self.sizes.max()

    def pick(self, index: int, device: torch.device | None = None) -> None:
        """Use one candidate alone, on a device or where it was."""
        device = device or self.sizes.device
        self.chosen, self.sizes = (torch.full((1,), n, device=device) for n in (index, self.candidates[index]))
        self.weights, self.active = torch.ones(1, device=device), self.sizes[0]

    def mixture(self, scales: Tensor | None, shifts: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `CompactWidth.mixture`, over all channels; zero from the active size on."""
        if self.how == "none":
            return self.affine(scales, shifts, like)
        options = {"how": self.how, "device": like.device, "dtype": like.dtype}
        sizes = self.sizes.to(like.device)
        parts = torch.stack([interpolation_matrix(n, self.active, self.size, self.size, **options) for n in sizes])
        parts = parts * self.weights.to(like)[:, None, None]
        shift = None if shifts is None else torch.einsum("imn,i...n->...m", parts, shifts[self.chosen].to(like.dtype))
        if scales is not None:
            copies = scales.dim() - 2
            parts = (
                parts.view(len(parts), *[1] * copies, self.size, self.size)
                * scales[self.chosen].to(like.dtype)[..., None, :]
            )
        return parts.sum(0), shift

    def affine(self, scales: Tensor | None, shifts: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `CompactWidth.affine`, over all channels: (…, size) and (…, size), zero from the active size on."""
        is_open = torch.arange(self.size, device=like.device) < self.sizes.to(like.device)[:, None]
        shares = self.weights.to(like)[:, None] * is_open
        scale = shares.sum(0) if scales is None else _weighted(shares, scales[self.chosen].to(like.dtype))
        return scale, None if shifts is None else _weighted(shares, shifts[self.chosen].to(like.dtype))


def _weighted(shares: Tensor, values: Tensor) -> Tensor:
    """(fragments, size) and (fragments, …, size) to (…, size)."""
    spread = shares.view(len(shares), *[1] * (values.dim() - 2), -1)
    return (spread * values).sum(0)  # not einsum, which autocast would halve the precision of


class CompactAxis:
    """The positions of an axis that are computed under the sizes drawn now."""

    def __init__(self, layout: Layout | None, widths: Mapping[str, Size]):
        self._layout = layout
        self._widths = {run.width: widths[run.width] for run in layout or () if run.width is not None}
        self._cache: dict[tuple[torch.device, tuple[int, ...]], tuple[int, Tensor | None]] = {}

    def take(self, tensor: Tensor, dim: int) -> Tensor:
        """Only the active positions of `tensor` along `dim`; a view where they are a prefix."""
        if self._layout is None:
            return tensor
        count, index = self._active(tensor.device)
        if index is not None:
            return tensor.index_select(dim, index)
        return tensor if count == tensor.shape[dim] else tensor.narrow(dim, 0, count)

    def put(self, whole: Tensor, part: Tensor) -> None:
        """Write what `take` gathered from a vector back into it, in place."""
        count, index = self._active(whole.device)
        if index is None:
            whole[:count].copy_(part)
        else:
            whole.index_copy_(0, index, part)

    def _active(self, device: torch.device) -> tuple[int, Tensor | None]:
        sizes = tuple(width.active for width in self._widths.values())
        key = (device, sizes)
        if key not in self._cache:
            assert self._layout is not None
            kept = positions_of(self._layout, dict(zip(self._widths, sizes, strict=True)))
            is_prefix = len(kept) == 0 or kept[-1] == len(kept) - 1
            if len(self._cache) > 512:  # a concatenation of many widths has too many combinations to keep
                self._cache.clear()
            self._cache[key] = (len(kept), None if is_prefix else torch.as_tensor(kept, device=device))
        return self._cache[key]


class DenseAxis(nn.Module):
    """Which positions of an axis are switched on under the sizes drawn now.

    A module, so that its tables lie where the model lies: moved in a forward, they would have it compiled twice.
    """

    _owner: Tensor
    _channel: Tensor

    def __init__(self, layout: Layout | None, widths: Mapping[str, Size]):
        super().__init__()
        self._widths = [widths[run.width] for run in layout or () if run.width is not None]
        owner, channel = [], [torch.zeros(0, dtype=torch.long)]
        for run in layout or ():
            length = run.count * run.repeat
            # position 0 of the table below is "always on"
            owner += [0 if run.width is None else 1 + self._widths.index(widths[run.width])] * length
            channels = torch.arange(run.start, run.start + run.count).repeat_interleave(run.repeat)
            channel.append(torch.zeros(length, dtype=torch.long) if run.width is None else channels)
        self.register_buffer("_owner", torch.tensor(owner, dtype=torch.long), persistent=False)
        self.register_buffer("_channel", torch.cat(channel), persistent=False)

    def mask(self, tensor: Tensor, dim: int) -> Tensor:
        """`tensor` with the inactive positions along `dim` set to zero."""
        if not self._widths:
            return tensor
        active = torch.stack([as_tensor(width, tensor.device) for width in self._widths])
        active = torch.cat([active.new_ones(1), active])
        shape = [1] * tensor.dim()
        shape[dim] = -1
        return tensor * (self._channel < active[self._owner]).view(shape).to(tensor.dtype)


def gumbel_weights(
    log_probabilities: Tensor, fragments: int, *, temperature: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw candidates of every choice without replacement and weigh them.

    Args:
        log_probabilities: (choices, candidates), log softmax of the logits; padding far below zero.
        fragments: candidates to draw, I of the paper.
        temperature: τ > 0 of the Gumbel softmax.
        generator: source of the noise.

    Returns:
        Indices (choices, fragments), int64, no gradient; weights (choices, fragments), rows summing to one.

    Source:
        Dong and Yang, 2019, section 3.1; the released code draws with probabilities softmax(u) + 1e-7.
    """
    noise = torch.empty_like(log_probabilities).exponential_(generator=generator).clamp_min(1e-20).log().neg()
    perturbed = (log_probabilities + noise.detach()) / temperature
    with torch.no_grad():
        # padding keeps a vanishing probability: a choice with fewer candidates than fragments repeats with weight zero
        is_real = log_probabilities > PADDING / 2
        chances = torch.where(is_real, perturbed.softmax(1) + 1e-7, torch.full_like(perturbed, 1e-30))
        chosen = torch.multinomial(chances, min(fragments, chances.shape[1]), generator=generator)
    return chosen, perturbed.gather(1, chosen).softmax(1)


PADDING = -1e9  # logit of a candidate that is not there
