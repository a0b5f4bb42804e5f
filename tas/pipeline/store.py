"""Save a small network and rebuild it from the user's own constructor; no pickle."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from tas.architecture import Architecture
from tas.errors import ArchitectureError, ModelError
from tas.graph import Graph
from tas.nn.fingerprint import fingerprint, first_difference
from tas.nn.modes import evaluating, require_module
from tas.nn.surgery import cut, require_fit, tensors_by_name
from tas.run import ARCHITECTURE, WEIGHTS, runs_inside
from tas.storage import fill, write_text, write_with

_KEY, _GIVES = "tas_graph", "tas_gives"


def save(folder: str | Path, small: nn.Module, graph: Graph, architecture: Architecture) -> None:
    """Write `model.safetensors` (weights; the graph and what modules give in its header) and `architecture.json`.

    Args:
        folder: made if needed; each file is replaced in one step.
        small: derived from the graph's model with this architecture.
        graph: of the full model.
        architecture: of `small`.

    Raises:
        RunError: the folder cannot be written.
        ArchitectureError: `small` is not of this architecture.
        ModelError: a module keeps a state that safetensors cannot hold.
    """
    from safetensors.torch import save_model

    require_storable(small)
    folder = Path(folder)
    _require_architecture(small, graph, architecture)
    metadata = {_KEY: graph.to_json(), _GIVES: json.dumps(fingerprint(small, graph.input_shapes))}
    unsaved = _unsaved(small, graph)
    with small.register_state_dict_post_hook(lambda _, state, *rest: state.update(_owned(state | unsaved))):
        write_with(folder / WEIGHTS, lambda path: save_model(small, str(path), metadata=metadata))
    write_text(folder / ARCHITECTURE, architecture.to_json())


def _require_architecture(small: nn.Module, graph: Graph, architecture: Architecture) -> None:
    found = sum(parameter.numel() for parameter in small.parameters())
    if found != graph.params(architecture):
        raise ArchitectureError(
            f"the model has {found:,} parameters, this architecture {graph.params(architecture):,}; save the model "
            f"that was derived with it"
        )
    held, sizes = tensors_by_name(small), graph.sizes(architecture)
    dropped = tuple(f"{block}." for block in graph.skipped(architecture))
    for item in [item for layer in graph.layers for item in layer.parameters]:
        if item.is_buffer or item.name.startswith(dropped):
            continue
        tensor, shape = held.get(item.name), tuple(count.of(sizes) for count in item.counts)
        if tensor is None or tuple(tensor.shape) != shape:
            has = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise ArchitectureError(
                f"{item.name} has shape {shape} in this architecture, the model has {has}; save the model that was "
                f"derived with it, out of torch.compile or DataParallel (model._orig_mod, model.module)"
            )


def require_storable(model: nn.Module) -> None:
    """Check that the state of a model is of tensors alone, as safetensors files are.

    Raises:
        ModelError: a module adds something else to it.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} in the state of {type(model).__name__} is no tensor ({type(value).__name__}), and safetensors "
                f"holds nothing else; let get_extra_state of that module return a tensor"
            )


def _unsaved(small: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """Buffers that were cut and that the state of the network does not have (`persistent=False`).

    A constructor makes them whole and in their first order, not of the channels that were kept.
    """
    state, buffers = small.state_dict(), dict(small.named_buffers())
    cut_ones = [item.name for layer in graph.layers for item in layer.parameters if any(item.layouts)]
    return {name: buffers[name] for name in cut_ones if name in buffers and name not in state}


def _owned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values; views of larger storages, which safetensors does not write, are copied."""
    return {
        name: value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
        for name, value in state.items()
    }


def save_full(path: Path, model: nn.Module) -> None:
    """Write the state of a full model, for any loader of state dicts: names of shared weights stand there too.

    Raises:
        RunError: the file cannot be written.
        ModelError: a module keeps a state that safetensors cannot hold.
    """
    from safetensors.torch import save_file

    require_storable(model)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    write_with(path, lambda temporary: save_file(state, str(temporary)))


def load(folder: str | Path, fresh_model: nn.Module, *, check: bool = True) -> nn.Module:
    """Rebuild the small network from a saved folder.

    Args:
        folder: written by `save` or by a run.
        fresh_model: the full model as its constructor makes it; its weights do not matter, it is not changed.
        check: compare what every module gives on noise with what it gave when it was saved: weights do not tell
            whether a constructor has other strides, activations or constants now.

    Returns:
        The small network with its weights, in evaluation mode.

    Raises:
        ArchitectureError: files are missing or damaged.
        ModelError: `fresh_model` is not the model that was pruned, computes something else, or has no weights.
    """
    require_module(fresh_model)
    graph, architecture = load_graph(folder)
    if any(tensor.is_meta for tensor in tensors_by_name(fresh_model).values()):
        raise ModelError(f"{type(fresh_model).__name__} is on the meta device; build it on the CPU")
    require_fit(fresh_model, graph)
    small = cut(fresh_model, graph, graph.check(architecture))
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / WEIGHTS)
    for name in _unsaved(small, graph).keys() - tensors.keys():
        raise ArchitectureError(
            f"{Path(folder) / WEIGHTS} lacks {name}, a buffer that was cut and that no state dict has; an older "
            f"version wrote it. Derive and save the network again"
        )
    try:
        fill(small, tensors)
    except ValueError as error:
        raise ModelError(
            f"the weights in {folder} do not fit: {error}. Give the constructor of the model that was pruned"
        ) from error
    evaluating(small)
    if check:
        _require_same(small, folder, graph)
    return small


def _require_same(small: nn.Module, folder: str | Path, graph: Graph) -> None:
    path = first_difference(small, graph.input_shapes, json.loads(_header(Path(folder)).get(_GIVES, "{}")))
    if path is not None:
        module = small.get_submodule(path)
        raise ModelError(
            f"the weights in {folder} fit, but {path or 'the model'} ({type(module).__name__}) computes something else "
            f"than when it was saved: its constructor has other settings (a stride, an activation, the constant of a "
            f"norm) or tables of its own. Give the constructor of the model that was pruned, in the version of then; "
            f"tas.load(…, check=False) takes it as it is"
        )


def load_graph(folder: str | Path) -> tuple[Graph, Architecture]:
    """Read what can be known without a model: the full model's graph and the architecture.

    Raises:
        ArchitectureError: files are missing or damaged.
    """
    folder = Path(folder)
    for name in (WEIGHTS, ARCHITECTURE):
        if not (folder / name).is_file():
            raise ArchitectureError(
                f"{folder} has no {name}; give the output folder of a finished run{runs_inside(folder)}"
            )
    metadata = _header(folder)
    if _KEY not in metadata:
        raise ArchitectureError(f"{folder / WEIGHTS} was not saved by tas; its header has no graph")
    try:
        text = (folder / ARCHITECTURE).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ArchitectureError(
            f"{folder / ARCHITECTURE} cannot be read ({error}); copy it anew or repeat the run"
        ) from error
    return Graph.from_json(metadata[_KEY]), Architecture.from_json(text)


def _header(folder: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArchitectureError(
            f"{folder / WEIGHTS} cannot be read ({error}); copy it anew or repeat the run"
        ) from error
