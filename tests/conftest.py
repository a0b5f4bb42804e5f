"""Fixtures for all tests."""

import pytest
from named import NAMES, Traced, traced


@pytest.fixture(params=NAMES)
def named(request: pytest.FixtureRequest) -> Traced:
    return traced(request.param)


@pytest.fixture(params=[name for name in NAMES if name != "vgg11_bn"])
def light(request: pytest.FixtureRequest) -> Traced:
    """The named models without the big one."""
    return traced(request.param)
