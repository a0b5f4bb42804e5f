"""Check the options of a config, whatever it is of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tas.errors import ConfigError

SEEDS = range(-(2**63), 2**63)  # what torch takes


def check_options(
    config: Any, stage: str, *, above_zero: Sequence[str], not_negative: Sequence[str] = (), shares: Sequence[str] = ()
) -> None:
    """Check choices, whole numbers and ranges of a config dataclass.

    Args:
        config: its annotations say which options are whole numbers and which have choices.
        stage: put before the names in messages.
        above_zero: options that must be above 0.
        not_negative: options that must be 0 or more.
        shares: options that must lie in [0, 1].

    Raises:
        ConfigError: names the option, its value and what it can be.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ConfigError(f"{stage} {name} is {value!r}; it can be {' or '.join(map(str, get_args(kind)))}")
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{stage} {name} is {value!r}; it must be a whole number")
    for names, limit, holds in (
        (above_zero, "be above 0", lambda value: 0 < value < math.inf),
        (not_negative, "not be negative", lambda value: 0 <= value < math.inf),
        (shares, "lie in [0, 1]", lambda value: 0 <= value <= 1),
    ):
        for name in names:
            if not holds(getattr(config, name)):
                raise ConfigError(f"{stage} {name} is {getattr(config, name)}; it must {limit}")
    check_seed(config.seed)


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that torch does not take."""
    if seed not in SEEDS:
        raise ConfigError(f"seed is {seed}; it must lie between {SEEDS[0]} and {SEEDS[-1]}")
