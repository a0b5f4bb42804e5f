"""Weights from a file into a model: everything fits, or nothing is changed."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.errors import ModelError
from tas.storage import fill

# Where training scripts put the weights in their checkpoints; averaged ones first, as timm's own loader takes them.
AVERAGES = ("state_dict_ema", "model_ema", "ema")
WRAPPERS = (*AVERAGES, "state_dict", "model_state_dict", "model")
AVERAGED = "n_averaged"  # what torch.optim.swa_utils.AveragedModel counts beside the weights
SHOWN = 3  # names in a message


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights of a file into a model.

    Checkpoints that keep the weights under `state_dict`, `model` or `model_state_dict`, and names that all start with
    one word more than the model's, such as `module.` or Lightning's `model.`, are understood. Where averaged weights
    stand beside them (`state_dict_ema`, `model_ema`, `ema`), those are taken, as timm does, with a warning. Nothing in
    the file is executed.

    Args:
        model: receives the weights; unchanged when an error is raised.
        path: a `.safetensors` file, or one written by `torch.save`.

    Raises:
        ModelError: the file is missing, holds no weights, or does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file of weights {path}; check the path")
    expected = model.state_dict()
    weights = _without_prefixes(_find_weights(_read(path), path), expected)
    _check_names(weights, expected, path)
    _check_shapes(weights, expected, path)
    counters = {name: value for name, value in expected.items() if name.endswith(".num_batches_tracked")}
    fill(model, counters | weights)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a safetensors file ({error}); save the weights again") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about unusual files; whether they load is what counts
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch has no common root for what a broken file can raise
        raise ModelError(
            f"{path} is not a plain file of weights, or holds Python objects which are not loaded for safety; "
            f"write it with torch.save(model.state_dict(), path)"
        ) from None


def _find_weights(content: Any, path: Path) -> dict[str, Tensor]:
    found = [name for name in WRAPPERS if isinstance(content, Mapping) and _is_wrapper(content, name)]
    if found:
        if found[0] in AVERAGES and len(found) > 1:
            warnings.warn(
                f"{path} has averaged weights ({found[0]}) beside those of {' and '.join(found[1:])}; the averaged "
                f"ones are loaded. For others, save them alone: torch.save(torch.load(path)[{found[1]!r}], another)",
                stacklevel=3,
            )
        content = content[found[0]]
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ModelError(f"{path} holds {kind}, no weights; write it with torch.save(model.state_dict(), path)")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ModelError(
            f"{path} holds more than weights ({_some(strangers)}); keep the weights alone, "
            f"or under one of {', '.join(WRAPPERS)}"
        )
    return dict(content)


def _is_wrapper(content: Mapping[Any, Any], name: str) -> bool:
    """Whether weights stand under this name; what averages keep of another kind (decay, updates) is left aside."""
    inner = content.get(name)
    is_whole = isinstance(inner, Mapping) and all(isinstance(value, Tensor) for value in inner.values())
    return is_whole if name in AVERAGES else isinstance(inner, Mapping)


def _without_prefixes(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers put before every name: DistributedDataParallel, torch.compile, a LightningModule."""
    found = {name: value for name, value in weights.items() if name != AVERAGED or name in expected}
    tried = [found]
    while all("." in name for name in found) and len({name.partition(".")[0] for name in found}) == 1:
        found = {name.partition(".")[2]: value for name, value in found.items()}
        tried.append(found)
    return max(tried, key=lambda names: len(names.keys() & expected.keys()))  # of equals the one with the most words


def _check_names(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    # Files older than PyTorch 0.4.1 have no such counters; torch fills them in.
    counted = [name for name in expected if not name.endswith(".num_batches_tracked")]
    filled = {expected[name].data_ptr() for name in weights if name in expected} - {0}  # of tied tensors one suffices
    missing = [name for name in counted if name not in weights and expected[name].data_ptr() not in filled]
    unexpected = [name for name in weights if name not in expected]
    named = (("missing", missing), ("unexpected", unexpected))
    if missing or unexpected:
        found = "; ".join(f"{len(names)} {word} ({_some(names)})" for word, names in named if names)
        raise ModelError(f"the weights of {path} belong to another model: {found}; load the model they are of")


def _check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    wrong = [name for name, value in weights.items() if value.shape != expected[name].shape]
    if not wrong:
        return
    shapes = [f"{name} {_shape(weights[name])} in the file, {_shape(expected[name])} in the model" for name in wrong]
    classes = weights[wrong[0]].shape[:1]
    only_classifier = {_module(name) for name in wrong} == {_module(list(expected)[-1])}
    way_out = "load the model they are of"
    if only_classifier and classes:
        way_out = f"pass num_classes={classes[0]}, or data of as many classes"
    raise ModelError(f"{len(wrong)} shapes of {path} do not fit: {_some(shapes, separator='; ')}; {way_out}")


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _some(names: list[str], *, separator: str = ", ") -> str:
    return separator.join(names[:SHOWN]) + (f"{separator}…" if len(names) > SHOWN else "")
