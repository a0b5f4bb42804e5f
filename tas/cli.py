"""The `tas` command: parse, call, print. Heavy imports wait until a command is chosen."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

from tas.distributed import launched, process_index
from tas.errors import TasError
from tas.show import results_alone

COMMANDS = {
    "compress": "shrink a model to a budget, or to several: search, derive, distil, measure, report",
    "trace": "show what can be pruned in a model, and what cannot and why",
    "search": "search the architecture under a budget, or decode a finished search for another",
    "derive": "make the small network of an architecture that was found",
    "train": "train a full model (a teacher), or a derived one with a teacher",
    "measure": "measure accuracy, multiply-adds, parameters and latency",
    "export": "write the small network as ONNX, int8 ONNX or torch.export, and compare the file with it",
    "report": "write the report of a run, or of several side by side, and print the results",
    "compare": "compare methods, knowledge transfers and budgets over several seeds under one recipe",
}
EXAMPLES = {
    "compress": [
        "tas compress",
        "tas compress --model cifar_resnet:20 --data folder:DIR --weights teacher.safetensors --budget.macs 50% "
        "--output runs/r20 --seed 0",
        "tas compress --weights teacher.safetensors --budget.macs 30%,50%,70% --output runs/three",
        "tas compress torchvision:resnet18 --pretrained --data folder:imagenet --keep conv1,fc --space.round_to 8",
        "tas compress --config runs/r20/config.yaml --output runs/again",
        "tas compress --resume --output runs/r20",
    ],
    "trace": [
        "tas trace torchvision:resnet18",
        "tas trace torchvision:resnet18 --keep 'layer1.*,fc' --space.choose width --space.round_to 8",
        "tas trace my_model.py:build --input_size 3,64,64 --json",
    ],
    "search": [
        "tas search --model cifar_resnet:20 --weights teacher.safetensors --budget.macs 50% --output runs/found",
        "tas search --from runs/found --budget.macs 40% --output runs/smaller",
    ],
    "derive": ["tas derive --run runs/found"],
    "train": [
        "tas train --model cifar_resnet:20 --data cifar10 --data-dir data --output runs/teacher",
        "tas train --run runs/found",
    ],
    "measure": [
        "tas measure --model torchvision:resnet18 --pretrained --data folder:imagenet",
        "tas measure --run runs/found",
        "tas measure --run runs/found --input-size 3,32,32 --runtime onnxruntime --threads 1 --latency-batch 1,8",
        "tas measure timm:resnet18 --input-size 3,224,224 --device cuda --latency-batch 1,32",
    ],
    "export": [
        "tas export runs/r20",
        "tas export runs/r20 --format onnx-int8 --calibration-images 512 --accuracy-tolerance 1",
        "tas export runs/r20 --format torch-export --output r20.pt2 --input-size 3,32,32",
    ],
    "report": ["tas report runs/r20", "tas report runs/r20 runs/again --output runs/both", "tas report runs/three"],
    "compare": [
        "tas compare",
        "tas compare --methods tas,tas-width,uniform,l1 --transfers none,init+kd --seeds 0,1,2 --budgets 50%",
        "tas compare --data cifar10 --weights teacher.safetensors --methods tas,tas:search.halving_steps=400,taylor "
        "--budgets 50%,30% --workers 4 --output runs/versus",
        "tas compare --config runs/versus/config.yaml --output runs/again",
        "tas compare --resume --output runs/versus",
        "tas compare --resume --output runs/versus --seeds 0,1,2,3,4",
    ],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 with the message alone for our own errors; 2 for wrong usage; 130 when interrupted.
    """
    try:
        code = _main(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads our output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail at exit
        return 0


def _main(arguments: Sequence[str] | None) -> int:
    words = [_underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if words[:1] == ["search"]:  # a parameter of Python cannot be called from
        words = [re.sub(r"^--from(?==|$)", "--from_run", word) for word in words]
    if words[:1] == ["compare"]:  # which may have several
        words = [re.sub(r"^--budget(?==|$)", "--budgets", word) for word in words]
    words = [_plain_budget(word, after) for word, after in zip(words, [*words[1:], ""], strict=False)]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from tas.record import versions

        print(versions()["tas-pruning"])
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"tas: there is no command {name!r}\n\n{overview()}", file=sys.stderr)
        return 2
    try:
        return _call(name, rest)
    except TasError as error:
        place = f", process {process_index()}" if process_index() else ""  # it may be an image that only one has read
        print(f"tas {name}{place}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        way_on = {
            **dict.fromkeys(
                ("compress", "search", "compare"),
                "; what was finished is kept, go on with --resume and the same --output "
                "(without --resume if that is not there)",
            ),
            "train": "; what was finished is kept, go on with the same command, and --resume where there is no --run",
        }
        print(f"\ntas {name}: interrupted{way_on.get(name, '')}", file=sys.stderr)
        return 130


def overview() -> str:
    """What `tas --help` prints."""
    lines = ["usage: tas COMMAND [MODEL or RUN] [options]", ""]
    lines += ["Shrink a trained PyTorch vision model and keep its accuracy.", ""]
    lines += [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "Options and examples of a command: tas COMMAND --help",
        "The whole job on a small data set: tas compress",
    ]
    return "\n".join(lines)


def _underscored(word: str) -> str:
    """Accept --data-dir for --data_dir."""
    return re.sub(r"^--[^=]+", lambda match: "--" + match[0][2:].replace("-", "_"), word)


def _plain_budget(word: str, after: str) -> str:
    """Let --budget 50% stand for --budget.macs 50%; a file of budgets stays what it is."""
    name, _, value = word.partition("=")
    is_amount = name == "--budget" and not Path(value or after).is_file()
    return word.replace("--budget", "--budget.macs", 1) if is_amount else word


def _written_out(words: Sequence[str], function: Callable) -> list[str]:
    """With what may be left out: --model or --run before words that belong to no option, true behind --resume."""
    known = inspect.signature(function).parameters
    switches = {f"--{name}" for name, parameter in known.items() if isinstance(parameter.default, bool)}
    alone = {"--help", "--print_config"}  # all others have a value
    found, unnamed, place, left = [], [], 0, list(words)
    while left:
        word = left.pop(0)
        after = left[0] if left else ""
        if word in switches and after.lower() not in ("true", "false"):
            found.append(f"{word}=true")
        elif not word.startswith("-"):
            place = place if unnamed else len(found)
            unnamed.append(word)
        elif word in alone or "=" in word or not word.startswith("--") or not after or after.startswith("--"):
            found.append(word)
        else:
            found += [word, left.pop(0)]
    is_of_run = "run" in known and known["run"].default is inspect.Parameter.empty
    if unnamed and is_of_run:
        several = "list" in str(known["run"].annotation)
        unnamed = ["--run", json.dumps(unnamed)] if several else ["--run", *unnamed]
    elif unnamed and "model" in known:
        unnamed = ["--model", *unnamed]
    return [*found[:place], *unnamed, *found[place:]]


def _call(name: str, words: list[str]) -> int:
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    from tas.help import HelpFormatter, usage

    command = import_module(f"tas.commands.{name}")
    function = getattr(command, name)
    examples = "\n".join(f"  {line}" for line in EXAMPLES[name])
    parser = ArgumentParser(
        prog=f"tas {name}", usage=usage(name, function), description=COMMANDS[name], epilog=f"examples:\n{examples}",
        exit_on_error=False, formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    words = _written_out(words, function)
    parser.add_function_arguments(function, as_group=False)
    for target in command.SEEDS:
        parser.link_arguments("seed", target)
    try:
        for config in _configs(words):
            _require_groups(config, function)
        if hasattr(command, "defaults_for"):
            asked = [word for word in words if word not in ("-h", "--help") and not word.startswith("--print_config")]
            parser.set_defaults(command.defaults_for(parser.parse_args(asked)))
        parsed = parser.parse_args(words)
        has_config = any(word.startswith("--config") for word in words)
        # training a --run goes on by itself, and has no folder of its own
        if parsed.get("resume") and parsed.get("output") and not parsed.get("run") and not has_config:
            known = Path(parsed["output"]) / "config.yaml"
            if known.is_file():
                _require_groups(known, function)  # an interrupted run goes on with its own options
                parsed = parser.parse_args(["--config", str(known), *words])
    except (ArgumentError, UnicodeDecodeError) as error:
        hint = _meant(str(error), parser.get_defaults(skip_validation=True).keys())
        print(f"tas {name}: {_plain(str(error))}{hint}\nSee tas {name} --help", file=sys.stderr)
        return 2
    options = parser.instantiate(parsed).as_dict()
    options.pop("config", None)
    with launched(), results_alone():
        function(**options)
    return 0


def _configs(words: list[str]) -> list[Path]:
    """The files given as --config FILE or --config=FILE."""
    following = [*words[1:], ""]
    named = [after for word, after in zip(words, following, strict=False) if word == "--config"]
    return [Path(name) for name in (*named, *(w.split("=", 1)[1] for w in words if w.startswith("--config=")))]


def _require_groups(config: Path, function: Callable) -> None:
    """Refuse a value in place of a group of options, and a group's own seed: the parser would leave them out."""
    import argparse

    import yaml

    try:
        known = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return  # the parser says it better
    for name, parameter in inspect.signature(function).parameters.items():
        value = known.get(name) if isinstance(known, dict) else None
        if is_dataclass(parameter.default) and value is not None and not isinstance(value, dict):
            first = fields(parameter.default)[0].name
            raise argparse.ArgumentError(
                None, f"{config}: {name} is a group of options, such as {name}: {{{first}: …}}, but it is {value!r}"
            )
        if is_dataclass(parameter.default) and "seed" in (value or {}):
            raise argparse.ArgumentError(None, f"{config}: one seed rules all stages; give seed: …, not {name}.seed")


def _plain(message: str) -> str:
    """Words of the parser without its Python types."""
    several = r"Does not validate against any of the Union subtypes\s+Subtypes: \[(.*)\]\s+Errors:.*Given value: "
    message = re.sub(several, lambda found: f"Expected {_either(found[1])}. Got value: ", message, flags=re.DOTALL)
    message = re.sub(r"(a )?(typing\.)?Literal\[([^]]*)\]", lambda found: _either(found[3]), message)
    message = re.sub(r'Parser key "([^"]+)":\s*', r"--\1: ", message)
    return re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "").replace("\n", " ")


def _either(kinds: str) -> str:
    return kinds.replace("NoneType", "null").replace(", ", " or ")


def _meant(message: str, known: Iterable[str]) -> str:
    """The options closest to one that the parser does not know."""
    from tas.options import near_misses

    group = re.search(r"Group '([\w.]+)'", message)
    unknown = re.search(r"(?:arguments: --|[Oo]ption ')([\w.-]+)", message)
    return near_misses(f"{group[1]}.{unknown[1]}" if group else unknown[1], known) if unknown else ""


if __name__ == "__main__":
    sys.exit(main())
