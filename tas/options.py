"""Check the options of a config, whatever it is of, and understand the patterns in it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
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
    kinds = get_type_hints(type(config))
    for name, kind in kinds.items():
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
    if "seed" in kinds:
        check_seed(config.seed)


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that torch does not take."""
    if seed not in SEEDS:
        raise ConfigError(f"seed is {seed}; it must lie between {SEEDS[0]} and {SEEDS[-1]}")


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass in mappings and lists, for YAML."""
    return {name: _plain_value(value) for name, value in asdict(config).items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    return [_plain_value(item) for item in value] if isinstance(value, list | tuple) else value


def split_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns one by one; text holds them separated by commas, as on the command line."""
    if isinstance(patterns, str):
        return tuple(part.strip() for part in patterns.split(",") if part.strip())
    return tuple(patterns)


def near_misses(pattern: str, names: Iterable[str]) -> str:
    """` (did you mean …?)` with the names closest to a pattern that matches none; nothing where none is close."""
    names = dict.fromkeys(name for name in names if name)
    parts = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit())
    for wanted, known in ((pattern, names), (pattern.strip("*."), [*names, *parts])):
        if close := difflib.get_close_matches(wanted, list(known), n=3):
            return f" (did you mean {' or '.join(close)}?)"
    return ""
