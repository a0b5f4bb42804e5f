"""Shrink a trained PyTorch vision model to a budget by Transformable Architecture Search, and keep its accuracy.

The names below are the public ones; each is imported when first used, so that `import tas` stays light.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# A search meets thousands of layer shapes. oneDNN compiles a kernel for each and keeps 1,024 unless told otherwise
# before its first use; compiling again and again made steps of MobileNetV2 a third longer.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

if TYPE_CHECKING:
    from tas import data, models
    from tas.architecture import Architecture
    from tas.budget import Budget
    from tas.errors import (
        ArchitectureError,
        BudgetError,
        ConfigError,
        DataError,
        ModelError,
        RunError,
        TasError,
        TrainingError,
    )
    from tas.graph import Graph
    from tas.nn.supernet import Supernet
    from tas.pipeline.compare import CompareConfig, CompareResult, compare
    from tas.pipeline.compress import CompressConfig, CompressResult, compress
    from tas.pipeline.derive import derive, recalibrate
    from tas.pipeline.export import ExportConfig, ExportResult, export
    from tas.pipeline.latency import LatencyConfig, with_latency
    from tas.pipeline.measure import measure
    from tas.pipeline.rank import rank
    from tas.pipeline.report import report
    from tas.pipeline.rivals import Choice, RivalConfig, choose
    from tas.pipeline.search import SearchConfig, SearchResult, search
    from tas.pipeline.store import load, save
    from tas.pipeline.trace import trace
    from tas.pipeline.train import TrainConfig, train
    from tas.profile import Profile
    from tas.record import Record
    from tas.scores import Scores
    from tas.space import SearchSpace, SpaceConfig

_HOMES = {
    "tas.architecture": ["Architecture"],
    "tas.budget": ["Budget"],
    "tas.errors": [
        "ArchitectureError", "BudgetError", "ConfigError", "DataError", "ModelError", "RunError", "TasError",
        "TrainingError",
    ],
    "tas.graph": ["Graph"],
    "tas.nn.supernet": ["Supernet"],
    "tas.pipeline.compare": ["CompareConfig", "CompareResult", "compare"],
    "tas.pipeline.compress": ["CompressConfig", "CompressResult", "compress"],
    "tas.pipeline.derive": ["derive", "recalibrate"],
    "tas.pipeline.export": ["ExportConfig", "ExportResult", "export"],
    "tas.pipeline.latency": ["LatencyConfig", "with_latency"],
    "tas.pipeline.measure": ["measure"],
    "tas.pipeline.rank": ["rank"],
    "tas.pipeline.report": ["report"],
    "tas.pipeline.rivals": ["Choice", "RivalConfig", "choose"],
    "tas.pipeline.search": ["SearchConfig", "SearchResult", "search"],
    "tas.pipeline.store": ["load", "save"],
    "tas.pipeline.trace": ["trace"],
    "tas.pipeline.train": ["TrainConfig", "train"],
    "tas.profile": ["Profile"],
    "tas.record": ["Record"],
    "tas.scores": ["Scores"],
    "tas.space": ["SearchSpace", "SpaceConfig"],
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Budget",
    "BudgetError",
    "Choice",
    "CompareConfig",
    "CompareResult",
    "CompressConfig",
    "CompressResult",
    "ConfigError",
    "DataError",
    "ExportConfig",
    "ExportResult",
    "Graph",
    "LatencyConfig",
    "ModelError",
    "Profile",
    "Record",
    "RivalConfig",
    "RunError",
    "Scores",
    "SearchConfig",
    "SearchResult",
    "SearchSpace",
    "SpaceConfig",
    "Supernet",
    "TasError",
    "TrainConfig",
    "TrainingError",
    "choose",
    "compare",
    "compress",
    "data",
    "derive",
    "export",
    "load",
    "measure",
    "models",
    "rank",
    "recalibrate",
    "report",
    "save",
    "search",
    "trace",
    "train",
    "with_latency",
]


def __getattr__(name: str):
    if name in ("data", "models"):
        return import_module(f"tas.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'tas' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
