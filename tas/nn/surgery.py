"""Cut, mask and reorder the channels of a model; the model given is never changed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tas.architecture import Architecture
from tas.errors import ModelError
from tas.graph import Attribute, Graph, Layer, Parameter, Shortcut, channels_of, positions_of
from tas.nn.modes import forget, has_own_train, modes_kept
from tas.nn.paths import joined, lies_in
from tas.nn.rules import KINDS
from tas.nn.rules.base import layout_of
from tas.nn.rules.opened import Dropped
from tas.nn.rules.shortcut import MaskedShortcut, projection


def require_fit(model: nn.Module, graph: Graph) -> None:
    """Check that `graph` was traced from a model of this shape.

    Raises:
        ModelError: names the first tensor that differs.
    """
    held = tensors_by_name(model)
    for layer in graph.layers:
        for parameter in layer.parameters:
            if parameter.is_buffer and not any(parameter.layouts):
                continue  # a forward may give its own tables another size
            found = held.get(parameter.name)
            if found is None or tuple(found.shape) != parameter.shape:
                has = "no such tensor" if found is None else f"shape {tuple(found.shape)}"
                made = "; if its forward makes it, run it once on an input first" if parameter.is_buffer else ""
                raise ModelError(
                    f"the graph does not fit this {type(model).__name__}: {parameter.name} should have shape "
                    f"{parameter.shape}, the model has {has}; give the full, unpruned model the graph was traced from, "
                    f"in the same wrappers (torch.compile, DataParallel){made}"
                )


def cut(model: nn.Module, graph: Graph, architecture: Architecture, *, share_the_rest: bool = False) -> nn.Module:
    """A copy of `model` with the channels and blocks of `architecture` alone, prefixes of every width.

    Where a free residual stream changes its width, a projection takes the place of the identity; it starts as one over
    the channels that both sides have.

    Args:
        model: the full model.
        graph: of it.
        architecture: what to keep.
        share_the_rest: whether parameters that no width touches are those of `model` instead of copies.
    """
    open_layers = [layer for layer in graph.layers if layer.is_open]
    cut_away = [
        getattr(model.get_submodule(layer.name), item.short)
        for layer in open_layers
        for item in layer.parameters
        if any(item.layouts)
    ]
    # what is replaced below, or dropped with its block, is not copied first: a large layer would be copied for nothing
    cut_away += model.parameters() if share_the_rest else ()
    small, sizes = fresh_copy(model, cut_away), graph.sizes(architecture)
    _skip(small, graph, architecture)
    for layer in open_layers:
        if _is_skipped(layer.name, graph, architecture):
            continue
        narrow(small.get_submodule(layer.name), layer, sizes)
    for item in graph.attributes:
        if not _is_skipped(item.module, graph, architecture):
            set_attribute(small.get_submodule(item.module), item, sizes)
    for shortcut in projected(graph, architecture):
        read, made = shortcut.sizes(sizes)
        block = small.get_submodule(shortcut.block)
        like = next(block.parameters())
        setattr(block, shortcut.attribute, projection(torch.eye(made, read).to(like)).train(block.training))
    forget(small)
    return small


def narrow(module: nn.Module, layer: Layer, sizes: Mapping[str, int]) -> None:
    """Cut one layer to the first channels of each width, in place.

    Args:
        module: the layer, of full size.
        layer: what is known of it.
        sizes: channels to keep, by name of the width or exit.
    """
    tensors = {}
    for item in layer.parameters:
        if any(item.layouts):
            tensors[item.short] = _select(getattr(module, item.short), item, sizes)
    kind = KINDS[layer.kind]
    for name, value in kind.numbers(module, tensors).items():
        setattr(module, name, value)
    for name, value in tensors.items():
        _replace(module, name, value)
    if kind.becomes is not None:
        module.__class__ = kind.becomes


def projected(graph: Graph, architecture: Architecture) -> list[Shortcut]:
    """The shortcuts that are projections in this architecture: sizes differ, and the block is kept."""
    sizes = graph.sizes(architecture)
    kept = [item for item in graph.shortcuts if not _is_skipped(item.block, graph, architecture)]
    return [item for item in kept if len({*item.sizes(sizes)}) == 2]


def set_attribute(module: nn.Module, attribute: Attribute, sizes: Mapping[str, int]) -> None:
    """Give a number on a module the value it has under these sizes, in place."""
    value: Any = attribute.count.of(sizes)
    held = getattr(module, attribute.name) if attribute.place is not None else None
    if isinstance(held, dict):
        setattr(module, attribute.name, {**held, attribute.place: value})
        if type(module).__getstate__ is not object.__getstate__:
            module.__setstate__(module.__getstate__())  # of these it makes more, as layers of einops do
        return
    if held is not None:
        value = type(held)(value if place == attribute.place else item for place, item in enumerate(held))
    setattr(module, attribute.name, value)


class _ZeroAlong(nn.Module):
    """A tensor with some positions of one dimension set to zero, computed anew each time: nothing is stored."""

    def __init__(self, dim: int, dropped: np.ndarray):
        super().__init__()
        self._dim, self._dropped = dim, torch.as_tensor(dropped)

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor.index_fill(self._dim, self._dropped, 0)


def mask(model: nn.Module, graph: Graph, architecture: Architecture) -> nn.Module:
    """A full-shape copy of `model` that ignores the channels and blocks `architecture` drops: what `cut` must equal.

    No layer reads those channels, and norms over channels leave them out. Its parameters are those of `model`: it is
    for comparing, not for training.
    """
    masked, sizes = shared_copy(model), graph.sizes(architecture)
    _skip(masked, graph, architecture)
    for shortcut in projected(graph, architecture):
        read, _ = shortcut.sizes(sizes)
        setattr(masked.get_submodule(shortcut.block), shortcut.attribute, MaskedShortcut(read))
    wrapped = {}
    for layer in graph.layers:
        kind = KINDS[layer.kind]
        if _is_skipped(layer.name, graph, architecture) or not layer.is_open:
            continue
        module = masked.get_submodule(layer.name)
        if kind.masked is not None:
            wrapped[module] = kind.masked(module, layer, sizes)
            continue
        for name, dim in kind.reads.items():
            layout = layout_of(layer, name, dim)
            if layout is not None:
                size = getattr(module, name).shape[dim]
                dropped = np.setdiff1d(np.arange(size), positions_of(layout, sizes))
                parametrize.register_parametrization(module, name, _ZeroAlong(dim, dropped), unsafe=True)
    replaced(masked, wrapped)
    forget(masked)
    return masked


_PLAIN = (dict, OrderedDict, set)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy with modules and buffers of its own, and the same parameters: giants are not copied."""
    return fresh_copy(model, model.parameters())


def fresh_copy(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy without what modules have computed from their weights and kept; these tensors it has in common."""
    # a module with a `train` of its own may write into its weights there, as LoRA merges them; transformers' do not;
    # embeddings with a largest norm write in every forward
    writers = [module for module in model.modules() if getattr(module, "max_norm", None) is not None
               or (has_own_train(module)
                   and not type(module).train.__module__.startswith("transformers."))]  # fmt: skip
    written = {id(weight) for module in writers for weight in module.parameters()}
    shared = [tensor for tensor in shared if id(tensor) not in written]
    held = [value for module in model.modules() for value in vars(module).values()]
    # most of what modules hold are empty dicts, for hooks; one by one they, and long lists of numbers, take most time
    plain = [value for value in held if (type(value) in _PLAIN and not value) or _is_list_of_atoms(value)]
    memo = {id(value): type(value)(value) for value in plain} | {id(tensor): tensor for tensor in shared}
    copied = copy.deepcopy(model, memo)
    forget(copied)
    for module in copied.modules():
        for name in tables(module):
            table = vars(module).pop(name)
            module.register_buffer(name, table, persistent=False)
    return copied


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and tables of a model, under every path they have."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        found |= {joined(path, name): table for name, table in tables(module).items()}
    return found


def tables(module: nn.Module) -> dict[str, Tensor]:
    """Tensors in plain attributes of a user's module; in copies they are buffers, so that they are cut like those."""
    if type(module).__module__.startswith("torch.nn."):
        return {}
    held = {name: value for name, value in vars(module).items() if type(value) is Tensor and value.is_floating_point()}
    return {
        name: value
        for name, value in held.items()  # what begins with an underscore is a cache more often
        if value.dim() and not value.requires_grad and name[0] != "_" and not hasattr(type(module), name)
    }


def made_in_evaluation(model: nn.Module) -> dict[str, nn.Module]:
    """Tensors that modules make when they are told to evaluate and forget when they are told to train, by path."""
    if not any(map(has_own_train, model.modules())):
        return {}
    with modes_kept(model):
        model.eval()
        kept = tensors_by_name(model).keys()
        model.train()
        made = kept - tensors_by_name(model).keys()
    forget(model)
    return {path: model.get_submodule(path.rpartition(".")[0]) for path in made}


def reorder(model: nn.Module, graph: Graph, orders: Mapping[str, np.ndarray]) -> nn.Module:
    """A copy of `model` that computes the same with permuted channels.

    Args:
        model: the full model.
        graph: of it.
        orders: by name of the width or exit, the old channel at every new place.
    """
    ranked = fresh_copy(model)
    for layer in graph.layers:
        for parameter in layer.parameters:
            if not any(parameter.layouts):
                continue
            module = ranked.get_submodule(layer.name)
            tensor = getattr(module, parameter.short)
            for dim, layout in enumerate(parameter.layouts):
                index = np.arange(tensor.shape[dim])
                for width in {run.width for run in layout or () if run.width is not None}:
                    index = index[_permutation(channels_of(layout or (), width), orders[width])]
                tensor = tensor.index_select(dim, torch.as_tensor(index, device=tensor.device))
            _replace(module, parameter.short, tensor)
    forget(ranked)
    return ranked


def _permutation(channels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Old position for every position: channel order[k] moves to where channel k stood, each repeat in its turn."""
    index = np.arange(len(channels))
    positions = np.argsort(channels, kind="stable")
    by_channel = positions[channels[positions] >= 0].reshape(len(order), -1)  # all stand equally often
    index[by_channel] = by_channel[order]
    return index


def _skip(model: nn.Module, graph: Graph, architecture: Architecture) -> None:
    dropped: dict[nn.Module, nn.Module] = {}
    for depth in graph.depths:
        for block in depth.blocks[architecture.depths[depth.name] :]:
            old = model.get_submodule(block)
            dropped[old] = Dropped(old, depth)
    replaced(model, dropped)


def _is_skipped(path: str, graph: Graph, architecture: Architecture) -> bool:
    return any(lies_in(path, block) for block in graph.skipped(architecture))


def _select(tensor: Tensor, parameter: Parameter, sizes: Mapping[str, int]) -> Tensor:
    for dim, layout in enumerate(parameter.layouts):
        if layout is None:
            continue
        kept = positions_of(layout, sizes)
        if len(kept) and kept[-1] == len(kept) - 1:
            tensor = tensor.narrow(dim, 0, len(kept))
        else:
            tensor = tensor.index_select(dim, torch.as_tensor(kept, device=tensor.device))
    return tensor


def replaced(root: nn.Module, others: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put other modules in the places of some, in place; gives the root, which may be one of them.

    Plain lists, tuples and mappings of modules are followed too: a forward may go through one beside the registry.
    """
    for parent in list(root.modules()):
        while found := [(name, child) for name, child in parent.named_children() if child in others]:
            for name, child in found:  # of a child under two names, the first is listed
                setattr(parent, name, others[child])
    _replace_in_containers(root, others)
    return others.get(root, root)


_OWN = vars(nn.Module()).keys()  # what torch keeps of a module itself


def _replace_in_containers(root: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    for parent in root.modules() if others else ():
        for name, held in vars(parent).items():
            if name not in _OWN and (held_now := _with_others(held, others)) is not held:
                vars(parent)[name] = held_now


def _with_others(held: Any, others: Mapping[nn.Module, nn.Module]) -> Any:
    """A plain container with the others in it; itself where there is nothing to replace."""
    if isinstance(held, nn.Module):
        return others.get(held, held)
    if type(held) not in (list, tuple, dict) or _is_list_of_atoms(held):
        return held
    items = [_with_others(item, others) for item in (held.values() if isinstance(held, dict) else held)]
    if all(new is old for new, old in zip(items, held.values() if isinstance(held, dict) else held, strict=True)):
        return held
    return dict(zip(held, items, strict=True)) if isinstance(held, dict) else type(held)(items)


def _is_list_of_atoms(held: Any) -> bool:
    return type(held) is list and set(map(type, held)) <= {bool, int, float, str}


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    new = value.detach().clone(memory_format=torch.contiguous_format)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
