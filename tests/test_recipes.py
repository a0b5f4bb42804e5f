"""Every recipe is what its maker writes, and a config that `tas compress` takes; its budget can be held."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

import tas
from tas import models
from tas.options import with_options
from tas.pipeline.compress import CompressConfig

HOME = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(HOME.glob("*.yaml"))
NOT_OF_THE_JOB = {"model", "data", "pretrained", "image_size", "budget"}


def maker():
    spec = importlib.util.spec_from_file_location("make_recipes", HOME / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_maker_writes():
    wanted = maker().recipes()
    assert {path.name for path in RECIPES} == set(wanted)
    for path in RECIPES:
        assert path.read_text() == wanted[path.name], f"run python recipes/make.py: {path.name} differs"


def test_every_row_of_the_tables_has_one():
    names = {path.stem for path in RECIPES}
    rows = {
        f"c{classes}-r{depth}{choice}"
        for classes in (10, 100)
        for depth in (20, 32, 56, 110, 164)
        for choice in ("", "-width", "-depth")
    }
    assert rows | {"imagenet-r18", "imagenet-r50"} <= names


def flat(options: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in options.items():
        is_group = isinstance(value, dict) and name != "candidates"
        found |= flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_config(path):
    settings = yaml.safe_load(path.read_text())
    job = {name: value for name, value in settings.items() if name not in NOT_OF_THE_JOB}
    config = with_options(CompressConfig(), flat(job), path.stem)
    tas.Budget(**settings["budget"])
    if not path.stem.startswith("short"):
        paper = (config.search.start, config.search.fragments, config.init, config.residuals, config.search.band)
        assert paper == ("scratch", 2, "fresh", "free", "paper")
        assert config.train.transfer == "kd"


def test_the_shares_are_of_the_networks_full_cost():
    full = maker().FULL
    from tas.pipeline.measure import count_macs

    for depth, macs in full.items():
        assert count_macs(models.cifar_resnet(depth), torch.zeros(1, 3, 32, 32)) == macs


@pytest.mark.parametrize("choice", ["", "-width", "-depth"])
@pytest.mark.parametrize("classes", [10, 100])
def test_the_budgets_of_the_smallest_network_can_be_held(choice, classes):
    settings = yaml.safe_load((HOME / f"c{classes}-r20{choice}.yaml").read_text())
    graph = tas.trace(models.cifar_resnet(20, classes), torch.zeros(1, 3, 32, 32), residuals=settings["residuals"])
    budget = tas.Budget(**settings["budget"])
    budget.require_reachable(graph, tas.SearchSpace.of(graph, choose=settings["space"]["choose"]))
