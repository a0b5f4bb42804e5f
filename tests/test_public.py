"""The public names are a contract, and importing them is cheap."""

import subprocess
import sys

import pytest

import tas

NAMES = [
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


def test_the_public_names_are_these():
    assert sorted(tas.__all__) == NAMES
    for name in NAMES:
        assert getattr(tas, name) is not None
        assert name in dir(tas)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        tas.prune  # noqa: B018


def test_all_errors_have_one_root():
    errors = [getattr(tas, name) for name in NAMES if name.endswith("Error")]
    assert all(issubclass(error, tas.TasError) for error in errors)


def test_importing_tas_adds_at_most_0_3_seconds_to_torch():
    code = "import time, torch; a = time.perf_counter(); import tas; print(time.perf_counter() - a)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(found.stdout) <= 0.3


def test_importing_tas_loads_nothing_heavy():
    heavy = ["torchvision", "accelerate", "plotly", "sklearn", "timm", "jsonargparse", "safetensors", "optuna", "onnx"]
    code = f"import sys, tas; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
