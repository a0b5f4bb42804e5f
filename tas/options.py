"""Check the options of a config, whatever it is of, and understand the patterns in it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tas.errors import ConfigError

SEEDS = range(-(2**63), 2**63)  # what torch takes
_Config = TypeVar("_Config")


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
        if kind in (float, int | float) and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ConfigError(f"{stage} {name} is {value!r}; it must be a number")
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


def or_default(config: Any, kind: type[_Config]) -> _Config:
    """The config; the defaults where none is given.

    Raises:
        ConfigError: it is of another kind.
    """
    if config is None:
        return kind()
    if not isinstance(config, kind):
        inside = [f"config.{name}" for name, value in getattr(config, "__dict__", {}).items() if type(value) is kind]
        way_out = " or ".join(inside) or f"a tas.{kind.__name__}"
        raise ConfigError(f"config= is a {type(config).__name__}; pass {way_out}")
    return config


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that torch does not take."""
    if seed not in SEEDS:
        raise ConfigError(f"seed is {seed}; it must lie between {SEEDS[0]} and {SEEDS[-1]}")


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass in mappings and lists, for YAML."""
    return plain_value(asdict(config))


def plain_value(value: Any) -> Any:
    """A nest of mappings and sequences as one of dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    return [plain_value(item) for item in value] if isinstance(value, list | tuple) else value


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as the text of config.yaml."""
    import yaml

    return yaml.safe_dump(dict(settings), sort_keys=False)


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


def option_names(config: type) -> list[str]:
    """Names of all options of a config dataclass; those of a config inside it stand behind a dot."""
    found = []
    for name, kind in get_type_hints(config).items():
        is_group = isinstance(kind, type) and is_dataclass(kind)
        found += [f"{name}.{inner}" for inner in option_names(kind)] if is_group else [name]
    return found


def flat_options(options: Mapping[str, Any], config: type) -> dict[str, Any]:
    """Options of a nest of mappings by their dotted names."""
    kinds, found = get_type_hints(config), {}
    for name, value in options.items():
        kind = kinds.get(str(name))
        if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
            found |= {f"{name}.{inner}": item for inner, item in flat_options(value, kind).items()}
        else:
            found[str(name)] = value
    return found


def with_options(config: _Config, options: Mapping[str, Any], owner: str) -> _Config:
    """A copy of a config dataclass in which some options have other values.

    Args:
        config: the one to start from.
        options: values by dotted name, such as `search.epochs`; text is understood as on the command line.
        owner: put before messages: whose options these are.

    Raises:
        ConfigError: there is no such option, or its value makes no sense.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    kinds, changed = get_type_hints(type(config)), {}
    for head, values in groups.items():
        if head in kinds and is_dataclass(kinds[head]) and "" not in values:
            changed[head] = with_options(getattr(config, head), values, f"{owner}, {head}")
        elif head in kinds and not is_dataclass(kinds[head]) and list(values) == [""]:
            changed[head] = _converted(values[""], kinds[head], f"{owner}: {head}")
        else:
            name = ".".join(filter(None, (head, *list(values)[:1])))
            known = option_names(type(config))
            hint = near_misses(name, known) or f"; the options are {', '.join(known)}"
            raise ConfigError(f"{owner}: there is no option {name!r}{hint}")
    try:
        return replace(config, **changed)  # type: ignore[type-var]
    except ConfigError as error:
        raise error if str(error).startswith(owner) else ConfigError(f"{owner}: {error}") from None


def _converted(value: Any, kind: Any, name: str) -> Any:
    import yaml

    for one in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        try:
            return _as(value, one)
        except (TypeError, ValueError, yaml.YAMLError):
            continue
    raise ConfigError(f"{name} is {value!r}; it must be {_words(kind)}")


def _as(value: Any, kind: Any) -> Any:
    """`value` as one kind of option; text is read, nothing else is converted but whole numbers to real ones."""
    origin, is_text = get_origin(kind), isinstance(value, str)
    if origin is Literal:
        value = "no" if value is False else value  # YAML's own reading of no
        return get_args(kind)[get_args(kind).index(value)]
    if origin in (tuple, list, dict):
        import yaml

        is_list = is_text and get_args(kind)[0] is str and origin is not dict and not value.startswith("[")
        found = split_patterns(value) if is_list else yaml.safe_load(value) if is_text else value
        if origin is dict:
            return dict(found)  # type: ignore[arg-type]
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise ValueError
        return origin(_as(item, get_args(kind)[0]) for item in found)
    if kind is NoneType and (value is None or (is_text and value.lower() in ("none", "null"))):
        return None
    if kind is bool and is_text:
        return {"true": True, "false": False}.get(value.lower(), value)
    if kind in (int, float) and (is_text or (kind is float and type(value) is int)):
        return kind(value)
    if not isinstance(kind, type) or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    return value


def _words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "none"}
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, get_args(kind))))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return names.get(kind, "a list" if get_origin(kind) in (tuple, list) else "a mapping")
