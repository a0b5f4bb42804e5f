"""Files that are whole or absent: everything is written beside its place and moved there."""

import os
from collections.abc import Callable
from pathlib import Path

from tas.errors import RunError


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then move it to `path` in one step.

    Raises:
        RunError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error}); choose another folder or free some space") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
