"""What a comparison consists of: its settings, and the jobs they ask for, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tas.budget import Amount, Budget, bounds_text
from tas.errors import ConfigError
from tas.options import check_options, check_seed, plain, plain_value
from tas.pipeline.comparison.methods import Method, Methods, canonical_transfer, read_methods, read_transfer, words_of
from tas.pipeline.compress import CompressConfig
from tas.pipeline.rivals import RivalConfig
from tas.storage import file_name

DEFAULT_METHODS = "tas uniform l1"
DEFAULT_TRANSFERS = "none init+kd"
TEACHER = "teacher.json"  # the result of the job of this name


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared, and how.

    Attributes:
        methods: the rows; see `read_methods`.
        transfers: none, init, kd, dkd, dist, hints, attention, or init+ one of them: with `init` the small network
            inherits weights of the trained one, else it starts fresh; the rest is `TrainConfig.transfer`.
        seeds: one search and one training each.
        budgets: each is as in `compress`; text may name the quantity, `params=30%`.
        job: what all methods share: the recipe (`train`), the search of ours, the teacher, the space. Its seed is the
            teacher's.
        rivals: see `RivalConfig`; what all rivals share.
        count_search: `job.train.epochs` are the passes over the training set that every method has for search and
            training together, so that who searches trains for fewer; without it, those of the training alone.
        workers: processes that work side by side; with 1 or 0 everything runs in this one. On GPUs each worker has one
            to itself in turn.
        threads: of each worker; None is 1 in worker processes, and what torch has in this one.
    """

    methods: Methods = DEFAULT_METHODS
    transfers: str | Sequence[str] = DEFAULT_TRANSFERS
    seeds: str | int | Sequence[int] = (0, 1, 2)
    budgets: Amount | Budget | Mapping[str, Amount] | Sequence[Any] = "50%"
    job: CompressConfig = field(default_factory=CompressConfig)
    rivals: RivalConfig = field(default_factory=RivalConfig)
    count_search: bool = True
    workers: int = 1
    threads: int | None = None

    def __post_init__(self):
        check_options(self, "compare", above_zero=["threads"] if self.threads is not None else [])
        if self.workers < 0:
            raise ConfigError(f"compare workers is {self.workers}; give the number of processes, or 1 for this one")
        budgets = self.budgets
        budgets = [budgets] if isinstance(budgets, Budget | Mapping) else words_of(budgets)
        for name, values in (
            ("methods", read_methods(self.methods)),
            ("transfers", tuple(dict.fromkeys(canonical_transfer(word) for word in words_of(self.transfers)))),
            ("seeds", tuple(dict.fromkeys(_seed(word) for word in words_of(self.seeds)))),
            ("budgets", tuple(dict.fromkeys(_budget(word) for word in budgets))),
        ):
            if not values:
                raise ConfigError(f"compare {name} is empty; name at least one")
            object.__setattr__(self, name, values)
        bounds = [bounds_text(budget.amounts) for budget in self.budgets]  # type: ignore[union-attr]
        if twice := [text for text in bounds if bounds.count(text) > 1]:
            raise ConfigError(f"compare budgets has {twice[0]} in two spellings, which would share a row; give it once")
        for method in self.rows:
            method.job(self.job, 0)
            method.rival(self.rivals, 0)
            method.require_read(self.transfers)  # type: ignore[arg-type]

    @property
    def rows(self) -> tuple[Method, ...]:
        """The methods, read."""
        return self.methods  # type: ignore[return-value]

    def epochs_after(self, searched: float, method: Method) -> float:
        """Epochs to train for after a search.

        Args:
            searched: passes over the training set that the method has searched for.
            method: for the message.

        Raises:
            ConfigError: the search has used up all epochs.
        """
        epochs = self.job.train.epochs
        if not self.count_search:
            return epochs
        if searched >= epochs:
            raise ConfigError(
                f"method {method.label} passes over the training set {searched:g} times in its search alone, but "
                f"train.epochs gives search and training {epochs:g} together; give more, shorten the search, or set "
                f"count_search to false"
            )
        return round(epochs - searched, 2)

    def to_dict(self) -> dict[str, Any]:
        """Everything the result depends on, as options of the command line and of YAML files."""
        shared = self.job.to_dict()
        for name in ("latency", "latency_batch"):  # a comparison measures none
            shared.pop(name)
        rivals = {name: value for name, value in plain(self.rivals).items() if name != "seed"}
        return {
            "methods": {method.label: plain_value(method.to_dict()) for method in self.rows},
            "transfers": list(self.transfers),  # type: ignore[arg-type]
            "seeds": list(self.seeds),  # type: ignore[arg-type]
            "budgets": [{name: v for name, v in asdict(one).items() if v is not None} for one in self.budgets],  # type: ignore
            "count_search": self.count_search,
            **shared,
            "rivals": rivals,
        }


def _seed(word: Any) -> int:
    try:
        seed = int(word)
        if isinstance(word, bool) or (isinstance(word, float) and word != seed):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"compare seeds has {word!r}; give whole numbers, such as 0 1 2") from None
    check_seed(seed)
    return seed


def _budget(word: Any) -> Budget:
    if isinstance(word, str) and "=" in word:
        name, _, amount = word.partition("=")
        word = {name.strip(): amount.strip()}
    budget = Budget.of(word)
    if budget.latency is not None:
        raise ConfigError(f"compare budgets has a latency, {budget.latency}; a comparison knows macs and params alone")
    return Budget(**budget.amounts)  # the default in words, so that it has a name


@dataclass(frozen=True)
class Job:
    """One piece of work, done by one worker from start to end, whose result is one file.

    Attributes:
        kind: the full model (teacher), its seconds per epoch (clock), the choice of an architecture (search), or one
            training and test (cell).
        name: of the file.
        needs: files of jobs that must be done before.
        work: how long it is, about, in hundredths of an epoch.
    """

    kind: Literal["teacher", "clock", "search", "cell"]
    name: str
    seed: int
    method: Method | None = None
    budget: Budget | None = None
    transfer: str | None = None
    needs: tuple[str, ...] = ()
    work: int = 5

    @property
    def title(self) -> str:
        """What it is, in words."""
        return self.kind if self.kind == self.name else f"{self.kind} {self.name}"

    @property
    def file(self) -> str:
        """Path of its result in the folder; there when the job is done, and only then."""
        places = {"teacher": TEACHER, "clock": f"clocks/{self.name}.json", "cell": f"cells/{self.name}.json"}
        return places.get(self.kind, f"searches/{self.name}/choice.json")

    def path(self, folder: Path) -> Path:
        """Where its result lies."""
        return folder / self.file

    @property
    def inherits(self) -> bool:
        """Whether a cell starts from weights of the trained model."""
        return self.transfer is not None and read_transfer(self.transfer)[0]


def plan(config: CompareConfig, *, train_teacher: bool) -> list[Job]:
    """All jobs of a comparison: the teacher, then seed by seed the searches and their cells.

    Raises:
        ConfigError: two jobs would have one file.
    """
    teacher = Job("teacher", "teacher", config.job.seed, work=_hundredths(config.job.teacher.epochs * train_teacher))
    jobs, budgets, seeds = [teacher], config.budgets, config.seeds
    for seed in seeds:  # type: ignore[union-attr]
        cells = []
        jobs.append(Job("clock", f"seed{seed}", seed, needs=(teacher.file,)))
        for budget in budgets:  # type: ignore[union-attr]
            for method in config.rows:
                job = method.job(config.job, seed)
                searched = job.search.epochs if method.is_searched else 0
                bounds = file_name("-".join(f"{amount}{name}" for name, amount in budget.amounts.items()))
                name = f"{file_name(method.label)}-{bounds}"
                length = _hundredths(searched + 0.3 * method.is_searched)
                search = Job("search", f"{name}-seed{seed}", seed, method, budget, needs=(teacher.file,), work=length)
                jobs.append(search)
                work = _hundredths(job.train.epochs - searched * config.count_search)
                cells += [
                    Job("cell", f"{name}-{transfer}-seed{seed}", seed, method, budget, transfer, (search.file,), work)
                    for transfer in config.transfers  # type: ignore[union-attr]
                ]
        jobs += cells
    _require_own_files(jobs)
    return jobs


def _hundredths(epochs: float) -> int:
    return max(5, round(100 * epochs))


def _require_own_files(jobs: list[Job]) -> None:
    owners: dict[str, str] = {}
    for job in jobs:
        label = job.method.label if job.method else job.kind
        if (other := owners.setdefault(job.file.lower(), label)) != label:
            raise ConfigError(f"methods {other} and {label} would share files; give them labels that differ in letters")
