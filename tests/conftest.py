"""Fixtures for all tests."""

import os
from typing import Any

import pytest
import torch
from named import NAMES, Traced, traced

from tas.pipeline import export, measure
from tas.timing import measure_latency

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a thread each, and for what they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whatever ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def briefly_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are timed for a moment, in one turn, not for a second each: hundreds of tests end with that."""

    def brief(*models: Any, seconds: float = 1.0, **options: Any) -> list[tuple[float, float]]:
        return measure_latency(*models, seconds=min(seconds, 0.02), **options | {"rounds": 1})

    for verb in (export, measure):
        monkeypatch.setattr(verb, "measure_latency", brief)


@pytest.fixture(params=NAMES)
def named(request: pytest.FixtureRequest) -> Traced:
    return traced(request.param)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is given to `torch.compile`, which here traces but makes no kernels: those take minutes."""
    given, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: given.append(model) or real(model, backend="aot_eager"))
    return given
