# make demo   the main job on a small data set: environment, installation, tas compress
# make test   environment, installation, the whole test suite
# make lowest the test suite with the oldest versions that pyproject.toml allows, in an environment of its own
# make check  format, lint, types, layers
# make bench  speed and memory as ratios against their targets; BENCH="--only 'start:*'" measures some
# make zoo    traces and cuts every model of torchvision and many of timm, and writes docs/zoo.md; ZOO=--resume goes on
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: demo test lowest check format zoo bench clean

demo: $(VENV)/.demo
	$(BIN)/tas compress

# Compiled modules are kept whatever the environment says: the tests start some hundred processes that import torch.
# Three workers, since one of them often waits for such a process: on two idle cores 10 minutes.
test: $(VENV)/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile

lowest: $(VENV)/.uv
	$(PYTHON) -m venv $(VENV)-lowest
	$(BIN)/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable ".[test]"
	PYTHONDONTWRITEBYTECODE= $(VENV)-lowest/bin/python -m pytest -n 3 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

zoo: $(VENV)/.dev
	$(BIN)/python benchmarks/zoo.py --write docs/zoo.md $(ZOO)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py $(BENCH)

$(VENV)/.uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	touch $@

$(VENV)/.demo: $(VENV)/.uv pyproject.toml
	$(UV) --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.uv pyproject.toml
	$(UV) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info .pytest_cache .ruff_cache .hypothesis
