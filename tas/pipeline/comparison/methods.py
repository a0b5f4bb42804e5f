"""The rows of a comparison: methods, each with options of its own, and the ways knowledge is passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from tas.errors import ConfigError, first_line
from tas.options import flat_options, near_misses, with_options
from tas.pipeline.compress import CompressConfig
from tas.pipeline.rivals import METHODS as RIVALS
from tas.pipeline.rivals import READ_BY, RivalConfig
from tas.pipeline.train import TrainConfig
from tas.task import FEATURE_TRANSFERS, TRANSFER_WEIGHTS
from tas.task import Transfer as TransferName

# Dong and Yang, 2019, sections 3 and 4.1; the step of the logits is not theirs, since 1e-3 is for 58,600 steps: a
# short search would end where it began
PAPER = {
    "search.start": "scratch", "search.logits_start": "random", "search.architectures": 0,
    "search.interpolation": "average", "search.fragments": 2, "search.depth_samples": "all",
    "search.learning_rate": 0.1, "search.momentum": 0.9, "search.weight_decay": 5e-4,
    "search.logits_learning_rate": "auto", "search.logits_weight_decay": 1e-3,
    "search.logits_betas": (0.5, 0.999), "search.cost_weight": 2.0,
    "search.tolerance": 0.05, "search.band": "paper", "search.temperature_start": 10.0, "search.temperature_end": 0.1,
    "search.temperature_schedule": "linear", "search.teacher_weight": 0.0,
}  # fmt: skip
SEARCHED: dict[str, dict[str, Any]] = {
    "tas": {"space.choose": "both"},
    "tas-width": {"space.choose": "width"},
    "tas-depth": {"space.choose": "depth"},
    "tas-paper": {"space.choose": "both", "residuals": "free", **PAPER},
}
ONE_PROCESS = "every job of a comparison is done by one process, where it has no effect"
ELSEWHERE = {
    "seed": "the seeds of the comparison are the option seeds",
    "teacher": "the teacher is the same for all methods; set it for the whole comparison",
    "train.transfer": "it is the option transfers of the comparison",
    "train.epochs": "all methods train under one recipe; set it for the whole comparison",
    "train.seed": "the seeds of the comparison are the option seeds",
    "search.seed": "the seeds of the comparison are the option seeds",
    "rivals.seed": "the seeds of the comparison are the option seeds",
    "search.sync_batch_norm": ONE_PROCESS,
    "train.sync_batch_norm": ONE_PROCESS,
    "latency": "a comparison measures no latency",
    "latency_batch": "a comparison measures no latency",
}
READ_BY_TRANSFER: dict[str, tuple[str, ...]] = {  # options of `TrainConfig`, and which transfers look at them
    "train.teacher_weight": ("kd",),
    "train.temperature": ("kd", "dkd", "dist"),
    "train.transfer_weight": tuple(TRANSFER_WEIGHTS),
    "train.layers": FEATURE_TRANSFERS,
}
Methods = str | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to choose an architecture: a row of the table.

    Attributes:
        label: what tables and plots call it.
        name: of `SEARCHED` or `RIVALS`.
        options: those that differ from the rest, by dotted name: of the job, and behind `rivals.` of `RivalConfig`.
    """

    label: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_searched(self) -> bool:
        """Whether it is one of ours."""
        return self.name in SEARCHED

    def job(self, base: CompressConfig, seed: int) -> CompressConfig:
        """Settings of the whole job for this method.

        Raises:
            ConfigError: an option does not exist or has no effect here, or its value makes no sense.
        """
        self._require_effects()
        own = {name: value for name, value in self.options.items() if not name.startswith("rivals.")}
        owner, ours = f"method {self.label}", dict(SEARCHED.get(self.name, {}))
        if self.name == "tas-paper" and base.search.epochs == 0:
            ours["search.epochs"] = max(1, int(base.train.epochs) // 2)  # it knows nothing but its epochs
        job = with_options(replace(base, seed=seed), {**ours, **own}, owner)
        unread = job.search.unread if self.is_searched else {}
        for name in own:
            if reason := unread.get(name.removeprefix("search.")):
                raise ConfigError(f"{owner}: {name} has no effect, for {reason}")
        if job.init == "fresh":
            raise ConfigError(f"{owner}: init is fresh; where weights come from is said by the transfers, none and kd")
        return job

    def rival(self, base: RivalConfig, seed: int) -> RivalConfig:
        """Settings of a rival.

        Raises:
            ConfigError: an option does not exist, or its value makes no sense.
        """
        own = {name.removeprefix("rivals."): v for name, v in self.options.items() if name.startswith("rivals.")}
        return with_options(replace(base, seed=seed), own, f"method {self.label}, rivals")

    def require_read(self, transfers: Sequence[str]) -> None:
        """Refuse options of the training that none of the comparison's transfers reads.

        Raises:
            ConfigError: names the option.
        """
        asked = [read_transfer(name) for name in transfers]
        for name in self.options:
            readers = READ_BY_TRANSFER.get(name, ())
            if readers and not any(transfer in readers for _, transfer in asked):
                why = f"no transfer is {' or '.join(readers)}"
            elif name == "init" and not any(inherits for inherits, _ in asked):
                why = "no transfer begins with init"
            else:
                continue
            raise ConfigError(f"method {self.label}: {name} has no effect, for {why}; add one to the transfers")

    def _require_effects(self) -> None:
        """Refuse options that belong to the whole comparison, and those that this method never reads."""
        for name in self.options:
            elsewhere = next((text for key, text in ELSEWHERE.items() if f"{name}.".startswith(f"{key}.")), None)
            if elsewhere:
                raise ConfigError(f"method {self.label}: {name} cannot differ between methods; {elsewhere}")
            group, _, option = name.partition(".")
            if self.is_searched:
                has_effect, wanted = group != "rivals", f"those of search, such as {HINT}"
            else:
                own = [f"rivals.{known}" for known, methods in READ_BY.items() if self.name in methods]
                has_effect = group not in ("search", "execution")
                has_effect = has_effect and not (group == "rivals" and self.name not in READ_BY.get(option, self.name))
                wanted = " and ".join(own) or "none"
            if not has_effect:
                raise ConfigError(
                    f"method {self.label}: {name} has no effect on {self.name}; its own options are {wanted}"
                )

    def to_dict(self) -> dict[str, Any]:
        """As one may write it in a YAML file."""
        return {"method": self.name, "options": dict(self.options)}


HINT = "search.halving_steps=400"


def read_methods(methods: Methods) -> tuple[Method, ...]:
    """Understand the rows of a comparison.

    Args:
        methods: text with names between spaces, commas or semicolons, each with options where wanted
            (`tas tas-paper:search.fragments=1,search.band=code l1`), a list of such names, or a mapping of labels to
            such a name or to `{method, options}`.

    Raises:
        ConfigError: no such method or option syntax, or a label is there twice.
    """
    if isinstance(methods, str) and methods.strip()[:1] in ("{", "["):
        methods = _yaml(methods)
    if isinstance(methods, Mapping):
        found = [_labelled(str(label), value) for label, value in methods.items()]
    else:
        items = _named(methods) if isinstance(methods, str) else methods
        found = [method for item in items for method in _one(item)]
    if not found:
        raise ConfigError(f"methods is empty; name one or more of {', '.join((*SEARCHED, *RIVALS))}")
    labels = [method.label for method in found]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"method {label} is there twice; leave one out, or give each a label of its own")
    return tuple(found)


def _named(text: str) -> list[str]:
    """Every method of a text with its options; a comma stands between methods, or between the options of one."""
    found: list[str] = []
    for word in _split(text, r"[\s;]"):
        for place, part in enumerate(_split(word, ",")):
            if place and re.match(r"[\w.]+=", part):
                found[-1] += f",{part}"
            else:
                found.append(part)
    return found


def _one(item: Any) -> list[Method]:
    if isinstance(item, Method):
        return [item]
    if isinstance(item, Mapping):
        return list(read_methods(item))
    name, _, options = str(item).strip().partition(":")
    return [Method(str(item).strip(), _known(name), _options(options, str(item)))]


def _labelled(label: str, value: Any) -> Method:
    if isinstance(value, Method):
        return replace(value, label=label)
    if value is None or isinstance(value, str):
        return replace(_one(value or label)[0], label=label)
    if not isinstance(value, Mapping) or not {"method"} <= set(value) <= {"method", "options"}:
        raise ConfigError(f"method {label} is {value!r}; write {{method: tas, options: {{{HINT.replace('=', ': ')}}}}}")
    options = value.get("options") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"method {label}: options is {options!r}; write a mapping, such as {{search.halving_steps: 400}}"
        )
    return Method(label, _known(str(value["method"])), _flat(options))


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    found = flat_options(options, CompressConfig)
    group = found.pop("rivals", {})
    return found | ({f"rivals.{name}": value for name, value in group.items()} if isinstance(group, Mapping) else {})


def _known(name: str) -> str:
    known = (*SEARCHED, *RIVALS)
    if name not in known:
        raise ConfigError(f"there is no method {name!r}{near_misses(name, known)}; choose of {', '.join(known)}")
    return name


def _options(text: str, method: str) -> dict[str, str]:
    found = {}
    for part in _split(text, ","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"method {method!r}: {part!r} is no option; write NAME=VALUE, such as {HINT}")
        found[name.strip()] = value.strip()
    return found


def _split(text: str, separators: str) -> list[str]:
    """Parts between separators that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{(") - (letter in "]})")
        if not quote and depth == 0 and re.fullmatch(separators, letter):
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"methods {text!r} is not YAML ({first_line(error)})") from None


def words_of(value: str | int | float | Sequence[Any]) -> list[Any]:
    """The items of a list, or of text that has them between spaces, commas or semicolons."""
    if isinstance(value, str):
        return [word for word in re.split(r"[\s,;]+", value.strip("[] ")) if word]
    return list(value) if isinstance(value, Sequence) else [value]


def read_transfer(name: str) -> tuple[bool, TransferName]:
    """Whether the weights are inherited, and what is learned from the teacher.

    Raises:
        ConfigError: there is no such transfer.
    """
    known = get_args(TransferName)
    inherits = name == "init" or name.startswith("init+")
    transfer = "none" if name == "init" else name.removeprefix("init+")
    if transfer not in known:
        names = [*known, *("init" if one == "none" else f"init+{one}" for one in known)]
        raise ConfigError(f"there is no transfer {name!r}{near_misses(name, names)}; choose of {', '.join(names)}")
    return inherits, cast(TransferName, transfer)


def canonical_transfer(name: str) -> str:
    """`init` for `init+none`; the rest as it is."""
    inherits, transfer = read_transfer(str(name).strip())
    return transfer if not inherits else "init" if transfer == "none" else f"init+{transfer}"


def with_transfer(train: TrainConfig, name: TransferName, epochs: float) -> TrainConfig:
    """The recipe with another transfer and length; a weight set for one transfer is not taken for another."""
    return replace(
        train, transfer=name, epochs=epochs, transfer_weight=train.transfer_weight if name == train.transfer else None,
        layers=train.layers if name in FEATURE_TRANSFERS else (),
    )  # fmt: skip
