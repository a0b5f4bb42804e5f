"""Several budgets from one search: one folder each, nothing done twice, and the same models as one by one."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from toys import TinyNet, tiny_source

import tas
from tas.latency import Latency, Part
from tas.lookup import Lookup
from tas.pipeline import compress as compress_module
from tas.pipeline import search as search_module
from tas.pipeline.compress import short_search, short_train

BUDGETS = ["70%", "40%"]


def config(**options) -> tas.CompressConfig:
    search = {"architectures": 8, "halving_steps": 6, "halving_images": 16, "batch_size": 16, "held_out_images": 16}
    search |= options
    train = replace(short_train(), epochs=2, batch_size=16)
    return tas.CompressConfig(search=replace(short_search(), **search), train=train, teacher=train)


def compress(budget, output=None, *, resume=False, config=config(), **options):  # noqa: B008
    torch.manual_seed(0)
    return tas.compress(
        TinyNet(), tiny_source(), budget=budget, output=output, resume=resume, config=config, train_teacher=True,
        **options,
    )  # fmt: skip


def same(first: tas.CompressResult, second: tas.CompressResult) -> bool:
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return first.architecture == second.architecture and all(torch.equal(a, b) for a, b in pairs)


def rows(folder, **wanted) -> list[dict]:
    return [row for row in tas.Record.read(folder / "record.jsonl").rows if wanted.items() <= row.items()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "both"
    return folder, compress(BUDGETS, folder)


def test_every_budget_has_a_run_inside_and_a_page_compares_them(finished):
    folder, results = finished
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "record.jsonl", "graph.json", "scores.json", "teacher.safetensors", "summaries.json",
        "report.html", "macs-70pct", "macs-40pct",
    }  # fmt: skip
    summaries = json.loads((folder / "summaries.json").read_text())
    for result, amount in zip(results, BUDGETS, strict=True):
        name = f"macs-{amount[:2]}pct"
        assert result.folder == folder / name
        assert {path.name for path in result.folder.iterdir()} == {
            "config.yaml", "record.jsonl", "graph.json", "scores.json", "architecture.json", "model.safetensors",
            "report.html", "report.md", "summary.json",
        }  # fmt: skip
        assert summaries[name] == json.loads((result.folder / "summary.json").read_text())
        assert summaries[name]["budget"] == {"macs": amount}
        assert tas.Budget.of(amount).holds(result.graph, result.architecture)
        images = torch.randn(2, 3, 8, 8)
        assert torch.equal(tas.load(result.folder, TinyNet())(images), result.model(images))
    text = (folder / "report.html").read_text()
    assert "2 runs side by side" in text
    assert "Pareto front, from cheap to costly" in text


def test_without_epochs_each_is_the_model_that_its_budget_alone_gives(finished):
    for result, amount in zip(finished[1], BUDGETS, strict=True):
        assert same(result, compress(amount))


def test_teacher_and_search_run_once_and_count_in_every_run(finished):
    folder, results = finished
    assert [len(rows(folder, stage=stage)) for stage in ("teacher", "search", "train")] == [2, 1, 0]
    for result in results:
        own = rows(result.folder)
        assert own[:4] == rows(folder)  # start, teacher twice, saliency
        assert {row["part"] for row in own if row["stage"] == "search"} == {"saliency", "halving"}
        assert result.summary["seconds"]["teacher"] == pytest.approx(
            sum(row["seconds"] for row in rows(folder, stage="teacher")), abs=0.1
        )


@pytest.mark.parametrize("place", ["search", "halving", "train"])
def test_an_interrupted_run_goes_on_where_it_was_and_ends_the_same(finished, tmp_path, monkeypatch, place):
    add = tas.Record.add

    def interrupt(self, stage, **values):
        add(self, stage, **values)
        is_second = self.path is not None and self.path.parent.name == "macs-40pct"
        is_there = place in (stage, values.get("part")) and values.get("epoch", 0) == 0
        if is_there and (is_second or place == "search"):
            raise KeyboardInterrupt

    monkeypatch.setattr(tas.Record, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress(BUDGETS, tmp_path / "run")
    monkeypatch.setattr(tas.Record, "add", add)
    first = tmp_path / "run" / "macs-70pct" / "model.safetensors"
    was = first.stat() if first.exists() else None
    assert (was is not None) == (place != "search")
    monkeypatch.setattr(search_module, "measured_saliency", lambda *_: pytest.fail("measured again"))
    resumed = compress(BUDGETS, tmp_path / "run", resume=True)
    assert all(map(same, resumed, finished[1]))
    assert was is None or first.stat().st_mtime_ns == was.st_mtime_ns
    assert [result.pruned.accuracy for result in resumed] == [result.pruned.accuracy for result in finished[1]]
    for folder in ("run/macs-70pct", "run/macs-40pct"):
        rounds = [row["round"] for row in rows(tmp_path / folder, part="halving")]  # one was cut before its checkpoint
        repeated = [0] if (folder, place) == ("run/macs-40pct", "halving") else []
        assert rounds == repeated + sorted(set(rounds))
        epochs = [row["epoch"] for row in rows(tmp_path / folder, stage="train")]  # one was cut before its checkpoint
        assert epochs == ([0, 0, 1] if (folder, place) == ("run/macs-40pct", "train") else [0, 1])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_is_interrupted_is_reported_as_far_as_it_is(tmp_path, monkeypatch):
    import shutil

    shutil.copytree(compress(BUDGETS, tmp_path / "run")[0].folder.parent, tmp_path / "cut")
    (tmp_path / "cut" / "summaries.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "macs-40pct")
    text = tas.report(tmp_path / "cut").read_text()
    assert "of the multiply-adds" in text
    assert len(compress(BUDGETS, tmp_path / "cut", resume=True)) == 2  # the page alone does not make it a finished run
    with pytest.raises(tas.RunError, match="holds a finished run .it has summaries.json"):
        compress(BUDGETS, tmp_path / "cut", resume=True)
    assert "2 runs side by side" in tas.report(tmp_path / "cut").read_text()


def test_a_search_with_epochs_runs_them_once_at_the_middle_budget(tmp_path):
    results = compress(["80%", "30%", "50%"], tmp_path / "run", config=config(epochs=2, architectures=0))
    assert [row["epoch"] for row in rows(tmp_path / "run", stage="search") if "epoch" in row] == [0, 1]
    alone = compress("50%", tmp_path / "alone", config=config(epochs=2, architectures=0))
    assert same(results[2], alone)
    scores = json.loads((tmp_path / "alone" / "scores.json").read_text())
    for folder in ("run", "run/macs-80pct", "run/macs-30pct", "run/macs-50pct"):
        assert json.loads((tmp_path / folder / "scores.json").read_text()) == scores
    for result, budget in zip(results, ("80%", "30%"), strict=False):
        assert result.architecture == tas.Scores.read(tmp_path / "alone").decode(budget)


def timed(model, graph, space, *_, **__) -> tas.Graph:
    """A latency that no clock has measured: a microsecond per channel of the stem."""
    sizes = space.widths["stem.0"]
    times = Lookup(("stem.0", 0), (sizes, (0,)), tuple((1000 * size,) for size in sizes))
    latency = Latency((Part("stem.0", None, times),), 0, "a clock", 1, 1, 0.001 * sizes[-1], 0.0)
    return replace(graph, latency=latency)


def test_budgets_may_bound_different_quantities_latency_too(tmp_path, monkeypatch):
    monkeypatch.setattr(compress_module, "latency_of_run", timed)
    found = compress([{"params": "60%"}, tas.Budget(latency="50%")], tmp_path / "run", config=config(architectures=0))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["budget"] == {
        "macs": None, "params": ["60%", None], "latency": [None, "50%"]
    }  # fmt: skip
    assert [result.folder.name for result in found] == ["params-60pct", "latency-50pct"]
    assert found[1].architecture.widths["stem.0"] <= 4
    assert found[1].pruned.predicted_latency_ms == pytest.approx(0.001 * found[1].architecture.widths["stem.0"])


def test_a_list_of_one_is_one_run_in_a_list(tmp_path):
    (result,) = compress(["60%"], tmp_path / "run", config=config(architectures=0))
    assert result.folder == tmp_path / "run"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["budget"]["macs"] == "60%"


@pytest.mark.parametrize(
    ("budgets", "message"),
    [(["50%", "0.1%"], "the smallest has"), (["50%", "50%"], "macs-50pct is given twice"), ([], "no budget is given")],
)  # fmt: skip
def test_nothing_is_written_where_one_of_the_budgets_makes_no_sense(tmp_path, budgets, message):
    with pytest.raises(tas.BudgetError, match=message):
        compress(budgets, tmp_path / "run")
    assert not (tmp_path / "run").exists()
