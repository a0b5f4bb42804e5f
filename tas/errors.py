"""Everything that can go wrong, as one small tree.

    TasError
    ├── ModelError         the model cannot be captured, loaded, or does not fit its weights or its data
    ├── DataError          a data set is missing, empty, unreadable, or does not fit
    ├── ConfigError        an option has a value that makes no sense
    │   └── BudgetError    a budget that no architecture of the space can hold
    ├── ArchitectureError  an architecture or a file of one does not belong to this graph
    ├── TrainingError      the loss became NaN or infinite
    └── RunError           a run folder is in use, or cannot be resumed

A message says what was wrong, the value, the limit and the way out. The command line prints it alone and exits with 1.
"""

LONGEST_LINE = 400  # characters of somebody else's words: torch can say six thousand about one condition


class TasError(Exception):
    """Root of every error this package raises on purpose."""


class ModelError(TasError):
    """The model cannot be captured, loaded, or does not fit its weights or its data."""


class DataError(TasError):
    """A data set is missing, empty, unreadable, or does not fit."""


class ConfigError(TasError, ValueError):
    """An option has a value that makes no sense."""


class BudgetError(ConfigError):
    """A budget that no architecture of the space can hold."""


class ArchitectureError(TasError):
    """An architecture, or a file of one, does not belong to this graph."""


class TrainingError(TasError):
    """The loss became NaN or infinite."""


class RunError(TasError):
    """A run folder is in use, or cannot be resumed."""


def first_line(error: Exception) -> str:
    """The first line of what somebody else's error says, at most LONGEST_LINE of it; its type where it says nothing."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE].rstrip() + " …"
