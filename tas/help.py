"""What `tas COMMAND --help` prints: what may stand without a name, the options in plain words, examples."""

from __future__ import annotations

import inspect
import re
from argparse import Action
from collections.abc import Callable

from jsonargparse import DefaultHelpFormatter

_END = re.compile(r"\.? \((?P<required>required, )?type: [^()]*?(, default: (?P<default>.*))?\)$", re.DOTALL)
_NOTHING = ("null", "()", "[]")  # the words say what happens without


def usage(name: str, function: Callable) -> str:
    """One line; the parser's own lists every option before it explains them."""
    options = inspect.signature(function).parameters
    unnamed = " [MODEL]" if "model" in options else ""
    if "run" in options and options["run"].default is inspect.Parameter.empty:
        unnamed = " RUN [RUN …]" if "list" in str(options["run"].annotation) else " RUN"
    return f"tas {name}{unnamed} [--option value …]"


class HelpFormatter(DefaultHelpFormatter):
    """Without the Python types of options, which their words, choices and defaults show; keeps examples' lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        end = _END.search(text)
        if end is None:
            return text
        default = "" if end["default"] in (None, *_NOTHING) else f"default: {end['default']}"
        notes = ", ".join(part for part in ("required" if end["required"] else "", default) if part)
        return text[: end.start()] + (f" ({notes})" if notes else "")
