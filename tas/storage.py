"""Files that are whole or absent: everything is written beside its place and moved there."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from tas.distributed import from_main, is_main_process
from tas.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


def is_temporary(path: Path) -> bool:
    """Whether a file is one of ours that was never finished."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def is_left_over(path: Path) -> bool:
    """Whether a temporary file is of a process that has ended; those of another machine look so, too."""
    if not is_temporary(path) or os.name == "nt":  # there nobody can be asked whether a process lives
        return False
    process = int(path.name.split(".")[-2])
    try:
        if process != os.getpid():
            os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return process == os.getpid()  # another had this number before


def file_name(text: str) -> str:
    """Text as a name that every file system takes: `macs-30%` is `macs-30pct`."""
    return re.sub(r"[^A-Za-z0-9_.+=,-]+", "-", text.replace("%", "pct")).strip("-.")[:120]


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then move it to `path` in one step.

    Of several processes the main one alone writes.

    Raises:
        RunError: the place cannot be written.
    """
    if not is_main_process():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what this user's new files have; some writers make their own, for one alone
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {path} ({reason}); choose another folder or free some space") from error
    finally:
        with suppress(OSError):  # the folder may be what is wrong
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values in one step."""
    import torch

    content = io.BytesIO()  # torch, writing to a full disk itself, raises what nobody can tell from a bug
    torch.save(state, content)
    write_with(path, lambda temporary: temporary.write_bytes(content.getbuffer()))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; nothing in the file is executed.

    Raises:
        RunError: the file is damaged or not a checkpoint.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common root for what a broken file can raise
        raise RunError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); delete it to start this stage anew"
        ) from error


def _load_if_there(path: Path | None) -> dict[str, Any] | None:
    return load_state(path) if path is not None and path.exists() else None


def fill(module: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into a module, in place; of tensors that are one, one suffices.

    A buffer may have another size, since a forward may have made it anew, and be one that the module does not save
    (`persistent=False`). Unlike `load_state_dict`, this asks no module for the version of a state, which safetensors
    does not keep.

    Raises:
        ValueError: names or shapes differ; the module may be half filled.
    """
    import torch

    buffers = dict(module.named_buffers())
    own = {name: buffers[name] for name in tensors if name in buffers} | module.state_dict()
    filled = {own[name].data_ptr() for name in tensors if name in own}
    missing = [name for name, value in own.items() if name not in tensors and value.data_ptr() not in filled]
    strange = [name for name in tensors if name not in own]
    if missing or strange:
        word, name = ("missing", missing[0]) if missing else ("unexpected", strange[0])
        raise ValueError(f"{name} is {word}")
    with torch.no_grad():
        for name, value in tensors.items():
            held, (path, _, short) = own[name], name.rpartition(".")
            if short == "_extra_state":
                module.get_submodule(path).set_extra_state(value)
            elif name in buffers and (held.shape != value.shape or 0 in held.stride()):  # expanded, it takes no values
                dtype = held.dtype if held.is_floating_point() and value.is_floating_point() else value.dtype
                setattr(module.get_submodule(path), short, value.to(held.device, dtype, copy=True))
            elif held.shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)} instead of {tuple(held.shape)}")
            else:
                held.copy_(value)


def save_epoch(path: Path, epochs: int, config: str, parts: Mapping[str, Any]) -> None:
    """Write what a stage needs to go on: finished epochs, its options, and the state of every part."""
    if not is_main_process():
        return
    save_state(path, {"epochs": epochs, "config": config, **{name: part.state_dict() for name, part in parts.items()}})


def restore_epoch(path: Path | None, config: str, parts: Mapping[str, Any]) -> int:
    """Give every part its state back, and return how many epochs were finished: 0 without a checkpoint.

    Raises:
        RunError: the file is damaged, or was written with other options or for another model.
    """
    state = from_main(_load_if_there)(path)
    if state is None:
        return 0
    if not isinstance(state, dict) or not {"epochs", "config", *parts} <= state.keys():
        raise RunError(f"{path} is not a checkpoint of this stage; delete it to start this stage anew")
    if state["config"] != config:
        raise RunError(
            f"{path} was written with other options; give the same ones, or delete it to start this stage anew"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} does not fit this model ({type(error).__name__}); give the model it was written for, or delete it "
            f"to start this stage anew"
        ) from error
    return state["epochs"]
