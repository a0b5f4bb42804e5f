"""The weights of a small network by regression: every layer makes what it made in the full one, as far as it can."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.graph import Graph, Layer, positions_of
from tas.nn.modes import evaluating
from tas.nn.rules.base import layout_of
from tas.nn.rules.shortcut import untrained_norms
from tas.nn.statistics import batch_norms, measure_statistics
from tas.nn.surgery import shared_copy
from tas.progress import Bar, progress_bar

RIDGE = 0.1  # pull towards the inherited weights, as a share of the mean square of what a layer reads
ROWS = 2**16  # places of a layer that are looked at, at most
PER_VALUE = 512  # of these, for every value that an output is computed from: nine, where every channel has its own 3x3
READ = 2**26  # values read in these, at most: what is held of one layer
MADE = 2**23  # values made in these, at most: what is held of every layer
AT_ONCE = 64  # layers: the others take another forward of both networks
HELD_OUT = 0.25  # of the samples, which say how far to go
CHECKED = 64  # places, in which a layer must make what its weight makes of what it reads: a subclass may do otherwise

_Fitted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass
class _Goal:
    """What a layer made in the full model, in some places and the channels that are kept.

    Attributes:
        count: places there are, in all samples.
        places: those looked at.
        values: (places, channels).
    """

    count: int
    places: Tensor
    values: Tensor


@torch.no_grad()
def reconstruct(
    small: nn.Module, model: nn.Module, graph: Graph, architecture: Architecture, inputs: Tensor, *, seed: int = 0
) -> nn.Module:
    """Fit the weights of convolutions and linear layers, one after another, to what they made in the full model.

    Each is a ridge regression from what the layer reads in the small network, whose earlier layers are fitted already,
    to what it made in the full one, towards the inherited weights, and as far as it helps on the last samples, which
    are held out. Batch norms take the statistics of these inputs. A layer stays as it is where it is called several
    times, is frozen, shares its weight or lends it to a product, does more than to multiply by it (standardises it, or
    pads in a way of its own), or where its outputs are not those of the full model one by one (positions were cut).

    Args:
        small: derived from `model`; changed in place and returned in evaluation mode.
        model: the full model, its channels in the order in which `small` inherited them; not changed.
        graph: of it.
        architecture: of `small`.
        inputs: (samples, ...), on the device of both; all in one forward without gradients.
        seed: of the places that are looked at.

    Source:
        Y. He, X. Zhang and J. Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1,
        its least squares; here of many layers in one forward of the small network, with a ridge and held-out samples.
    """
    fitted = _layers(evaluating(small), graph)
    full, sizes = evaluating(shared_copy(model)), graph.sizes(architecture)
    if untrained_norms(small):
        measure_statistics(small, [(inputs, inputs)])  # projection shortcuts then pass on what they align
    with progress_bar("fit", len(fitted)) as bar:
        for start in range(0, len(fitted), AT_ONCE):
            _fit_all(fitted[start : start + AT_ONCE], small, full, sizes, inputs, seed, bar)
    return small


def _fit_all(
    layers: list[tuple[Layer, _Fitted]],
    small: nn.Module,
    full: nn.Module,
    sizes: Mapping[str, int],
    inputs: Tensor,
    seed: int,
    bar: Bar,
) -> None:
    """Fit some layers in one forward of each network."""
    goals = _goals(full, [layer for layer, _ in layers], sizes, inputs, seed)
    with ExitStack() as hooks:
        for layer, module in layers:
            if layer.name in goals:
                fit = partial(_fit, layer, goals[layer.name], bar)
                hooks.enter_context(module.register_forward_pre_hook(fit, with_kwargs=True))
            else:
                bar.advance()
        if batch_norms(small):
            measure_statistics(small, [(inputs, inputs)])
        else:
            small(inputs)


def _layers(small: nn.Module, graph: Graph) -> list[tuple[Layer, _Fitted]]:
    """Those that may be fitted."""
    modules = dict(small.named_modules())
    held = [parameter for module in modules.values() for parameter in module.parameters(recurse=False)]
    users: Counter[Tensor] = Counter(held)
    found = [(layer, modules.get(layer.name)) for layer in graph.layers]
    return [
        (layer, module)
        for layer, module in found
        if isinstance(module, _Fitted)
        if module.weight.requires_grad and users[module.weight] == 1
        if len(layer.products) <= 1  # a forward may also multiply by the weight itself
    ]


def _goals(
    model: nn.Module, layers: list[Layer], sizes: Mapping[str, int], inputs: Tensor, seed: int
) -> dict[str, _Goal]:
    """By layer; none of those that are called several times, or that do more than multiply by their weight."""
    goals: dict[str, list[_Goal | None]] = {layer.name: [] for layer in layers}
    generator = torch.Generator().manual_seed(seed)

    def note(layer: Layer, module: _Fitted, given: tuple[Any, ...], named: dict[str, Any], outputs: Tensor) -> None:
        """Behind a layer of the full model."""
        held, (inputs, *_) = goals[layer.name], (*given, *named.values())
        held.append(None if held else _goal(layer, module, inputs, outputs, sizes, generator))

    with ExitStack() as hooks:
        for layer in layers:  # before hooks of the user's
            module = model.get_submodule(layer.name)
            hooks.enter_context(module.register_forward_hook(partial(note, layer), prepend=True, with_kwargs=True))
        model(inputs)
    return {name: held[0] for name, held in goals.items() if len(held) == 1 and held[0] is not None}


def _goal(
    layer: Layer, module: _Fitted, inputs: Tensor, outputs: Tensor, sizes: Mapping[str, int], generator: torch.Generator
) -> _Goal | None:
    """Of what a layer made; None of one that makes it in another way, or of a sample without its dimension."""
    is_linear = isinstance(module, nn.Linear)
    if not is_linear and outputs.dim() != 2 + len(module.kernel_size):
        return None
    rows = (outputs if is_linear else outputs.movedim(1, -1)).reshape(-1, module.weight.shape[0])
    width = module.weight[0].numel()
    read = width * (1 if is_linear else module.groups)
    count = max(1, min(ROWS, PER_VALUE * width, READ // read, MADE // rows.shape[1]))
    places = torch.randperm(len(rows), generator=generator)[:count].to(rows.device)
    if not _is_plain(module, inputs, _Goal(len(rows), places[:CHECKED], rows[places[:CHECKED]])):
        return None
    values, layout = rows[places], layout_of(layer, "weight", 0)
    if layout is not None:
        values = values[:, torch.as_tensor(positions_of(layout, sizes), device=rows.device)]
    return _Goal(len(rows), places, values)


def _is_plain(module: _Fitted, inputs: Tensor, goal: _Goal) -> bool:
    """Whether a layer made what its weight makes of what it read, but for rounding."""
    read = _read(module, inputs, goal)
    if read is None:
        return False
    again = torch.einsum("pgi,goi->pgo", read, module.weight.float().reshape(read.shape[1], -1, read.shape[2]))
    again = again.flatten(1) + (0 if module.bias is None else module.bias.float())
    return bool((again - goal.values).norm() <= 0.01 * goal.values.float().norm())


def _fit(
    layer: Layer, goal: _Goal, bar: Bar, module: _Fitted, given: tuple[Tensor, ...], named: dict[str, Tensor]
) -> None:
    """Before a layer of the small network runs: its weights are what fits best what it is about to read."""
    bar.advance(layer.name)
    inputs, *_ = (*given, *named.values())
    read = _read(module, inputs, goal)
    if read is None:
        return
    places, groups, width = read.shape
    made = goal.values.float().reshape(places, groups, -1)
    weight = module.weight.float().reshape(groups, -1, width)
    is_shifted = layer.mixed_by not in (None, layer.name)  # by the batch norm behind it, whatever is added everywhere
    is_centred = module.bias is not None or is_shifted
    read_mean, made_mean = (part.mean(0) if is_centred else torch.zeros_like(part[0]) for part in (read, made))
    read, made = read - read_mean, made - made_mean
    missing = made - torch.einsum("pgi,goi->pgo", read, weight)
    is_held_out = goal.places >= (1 - HELD_OUT) * goal.count  # the last samples
    change = _regression(read[~is_held_out], missing[~is_held_out])
    weight = weight + _step(read[is_held_out], missing[is_held_out], change) * change
    if not torch.isfinite(weight).all():
        return
    module.weight.copy_(weight.reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_((made_mean - torch.einsum("gi,goi->go", read_mean, weight)).flatten())


def _step(read: Tensor, missing: Tensor, change: Tensor) -> Tensor:
    """The share of a change, in [0, 1], that leaves least missing in places that it was not fitted to.

    Few samples of a layer that reads much can be fitted to the letter, which says nothing about others.
    """
    found = torch.einsum("pgi,goi->pgo", read, change)
    return ((found * missing).sum() / found.square().sum().clamp_min(1e-30)).clamp(0, 1)


def _read(module: _Fitted, inputs: Tensor, goal: _Goal) -> Tensor | None:
    """(places, groups, values): what the outputs in some places are computed from; None if they are others."""
    if isinstance(module, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
        return rows[goal.places][:, None].float() if len(rows) == goal.count else None
    if inputs.dim() != 2 + len(module.kernel_size):
        return None
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    windows = F.pad(inputs, list(_padding(module)), mode=mode)
    for dim, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    shape = windows.shape[0], *windows.shape[2 : inputs.dim()]
    if math.prod(shape) != goal.count:
        return None
    sample, *place = torch.unravel_index(goal.places, shape)
    return windows[(sample, slice(None), *place)].reshape(len(goal.places), module.groups, -1).float()


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Iterator[int]:
    """Before and behind, of the last dimension first, as `F.pad` has it."""
    for place in reversed(range(len(module.kernel_size))):
        if isinstance(module.padding, str):
            total = module.dilation[place] * (module.kernel_size[place] - 1) if module.padding == "same" else 0
            yield from (total // 2, total - total // 2)
        else:
            yield from (module.padding[place],) * 2


def _regression(read: Tensor, missing: Tensor) -> Tensor:
    """(groups, outputs, values): by how much weights change so that what is missing appears, but for the ridge.

    Args:
        read: (places, groups, values).
        missing: (places, groups, outputs).
    """
    read, missing = read.movedim(1, 0), missing.movedim(1, 0)
    places, width = read.shape[1:]
    ridge = (RIDGE * read.square().mean((1, 2)) * places).double().clamp_min(1e-12)[:, None, None]
    if width <= places:
        gram, right = (read.mT @ read).double(), (read.mT @ missing).double()
        return torch.linalg.solve(gram + ridge * torch.eye(width).to(gram), right).mT.float()
    gram = (read @ read.mT).double()
    right = torch.linalg.solve(gram + ridge * torch.eye(places).to(gram), missing.double())
    return (right.mT @ read.double()).float()
