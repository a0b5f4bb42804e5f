"""Commands that are parsed and called, but do nothing."""

import functools
from importlib import import_module
from typing import Any

import pytest


def record_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """From now on `tas NAME` only appends its options to this list."""
    command, called = import_module(f"tas.commands.{name}"), []

    @functools.wraps(getattr(command, name))
    def record(**options):
        called.append(options)

    monkeypatch.setattr(command, name, record)
    return called
