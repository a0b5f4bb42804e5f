"""Models that a function of the user's builds, in a file or in a package."""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tas.errors import ModelError


def call_user_function(place: str, function: str, *, num_classes: int | None, pretrained: bool) -> nn.Module:
    """Import a file or a package's module and call its function.

    Args:
        place: `path/to/file.py` or `package.module`; the current folder is searched, too.
        function: name of a function, or of a class, that returns a model.
        num_classes: passed on if the function takes it and it is not None.
        pretrained: passed on if True.

    Raises:
        ModelError: the place or the function is missing, raises, or returns no model.
    """
    is_file = place.endswith(".py") or os.sep in place
    label = f"{place}:{function}"
    if is_file and not Path(place).is_file():
        raise ModelError(f"there is no file {place} (wanted for the model {label}); check the path")
    with _importable(Path(place).resolve().parent if is_file else Path.cwd()):
        module = _import(place, is_file)
        build = getattr(module, function, None)
        if not callable(build):
            close = difflib.get_close_matches(function, dir(module), n=1)
            hint = f"did you mean {close[0]}?" if close else "define a function of this name that returns the model"
            raise ModelError(f"{place} has no function {function}; {hint}")
        model = _call(build, label, num_classes, pretrained)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{label} returned a {type(model).__name__}, not a torch.nn.Module; return the model")
    return model


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the user's code import its neighbours, as it can when Python runs it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _import(place: str, is_file: bool) -> ModuleType:
    try:
        return _import_file(Path(place)) if is_file else importlib.import_module(place)
    except Exception as error:  # whatever the user's code raises
        what = "a model's name starts with cifar_resnet, torchvision, timm, a .py file or a module"
        way_out = what if isinstance(error, ModuleNotFoundError) and not is_file else "mend it, or check its imports"
        raise ModelError(f"cannot import {place} ({_reason(error)}); {way_out}") from error


def _import_file(path: Path) -> ModuleType:
    name = f"tas_user_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    return module


def _call(build: Callable[..., Any], label: str, num_classes: int | None, pretrained: bool) -> Any:
    options: dict[str, Any] = {}
    if num_classes is not None and _takes(build, "num_classes"):
        options["num_classes"] = num_classes
    if pretrained:
        if not _takes(build, "pretrained"):
            raise ModelError(f"{label} has no argument `pretrained`; add it, or pass a file with weights=")
        options["pretrained"] = True
    try:
        return build(**options)
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"{label} raised {_reason(error)}; it is called with {options or 'no arguments'}") from error


def _takes(build: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
