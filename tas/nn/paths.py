"""Paths of modules as `named_modules` has them: that of the model itself is empty."""

from __future__ import annotations


def joined(path: str, name: str) -> str:
    """Path of a child, or name of a parameter, of the module at this path."""
    return f"{path}.{name}" if path else name


def lies_in(path: str, module: str) -> bool:
    """Whether a path is that of a module, or of anything inside it."""
    return not module or path == module or path.startswith(f"{module}.")
