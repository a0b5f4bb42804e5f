"""Comparisons in Python: the numbers, resumption, failures, and the page."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from toys import Deadly, DeadlySource, TinyNet, tiny_source

import tas
from tas.pipeline.compare import CompareConfig
from tas.pipeline.comparison import pool, work
from tas.pipeline.compress import CompressConfig, short_search, short_train

FILES = {"config.yaml", "compare.json", "compare.md", "compare.html", "teacher.json", "clocks", "searches", "cells"}


HINTS = replace(short_train(), transfer="hints")


def tiny_config(**options) -> CompareConfig:
    teacher = replace(short_train(), epochs=2, batch_size=16)
    search = replace(short_search(), epochs=2, batch_size=16, held_out_images=16, precision="no")
    job = CompressConfig(
        search=replace(search, architectures=4, halving_steps=4),
        train=replace(teacher, epochs=12),
        teacher=teacher,
    )
    return CompareConfig(**{"methods": "tas l1", "transfers": "none init+kd", "seeds": (0, 1), "job": job, **options})


def fresh() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


def hard_source():
    """Too few images to get all of them right, so that cells differ."""
    return tiny_source(samples=72, classes=4, seed=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "comparison"
    return folder, tas.compare(fresh(), hard_source(), config=tiny_config(), output=folder)


def numbers(result) -> dict[str, tuple]:
    return {cell["name"]: (cell["accuracy"], cell["macs"], cell["params"]) for cell in result.cells}


def test_the_folder_holds_the_table_the_page_the_numbers_and_a_file_per_cell(finished):
    folder, result = finished
    assert {path.name for path in folder.iterdir()} == FILES
    assert len(list((folder / "cells").iterdir())) == len(result.cells) == 2 * 2 * 2
    assert len(list((folder / "searches").iterdir())) == 2 * 2
    assert json.loads((folder / "compare.json").read_text()) == json.loads(json.dumps(result.summary))
    assert result.failed == []


def test_rows_are_means_and_sample_deviations_over_the_seeds(finished):
    folder, result = finished
    assert [(row["method"], row["transfer"]) for row in result.rows] == [
        ("tas", "none"), ("tas", "init+kd"), ("l1", "none"), ("l1", "init+kd"),
    ]  # fmt: skip
    table = (folder / "compare.md").read_text()
    for row in result.rows:
        cells = [c for c in result.cells if (c["method"], c["transfer"]) == (row["method"], row["transfer"])]
        for name in ("accuracy", "macs", "params", "search_seconds", "search_in_epochs", "train_epochs"):
            values = [cell[name] for cell in cells]
            assert row[name]["mean"] == pytest.approx(mean(values))
            assert row[name]["deviation"] == pytest.approx(stdev(values))
        assert row["seeds"] == {str(cell["seed"]): cell["accuracy"] for cell in cells}
        assert f"{row['accuracy']['mean']:.2f} ± {row['accuracy']['deviation']:.2f}" in table
        assert ", ".join(f"{value:.2f}" for value in row["seeds"].values()) in table


def test_the_result_is_printed_as_its_rows(finished):
    folder, result = finished
    head, full, *rows, last = repr(result).splitlines()
    assert head.split() == ["method", "transfer", "accuracy", "%", "macs", "search", "s"]
    assert full.split() == ["full", "model", f"{result.full['accuracy']:.2f}", f"{result.full['macs']:,}"]
    assert [row.split()[:3] for row in rows] == [
        [row["method"], row["transfer"], f"{row['accuracy']['mean']:.2f}"] for row in result.rows
    ]
    assert last == f"folder: {folder}"


def test_the_budget_holds_in_every_cell(finished):
    _, result = finished
    assert all(cell["macs"] <= 0.5 * result.full["macs"] for cell in result.cells)


def test_transfers_share_the_architecture_and_methods_the_epochs(finished):
    _, result = finished
    assert {round(cell["search_epochs"] + cell["train_epochs"], 2) for cell in result.cells} == {12}
    assert all(cell["search_epochs"] == 0 for cell in result.cells if cell["method"] == "l1")
    assert all(cell["search_epochs"] > 0 for cell in result.cells if cell["method"] == "tas")
    for method in ("tas", "l1"):
        for seed in (0, 1):
            cells = [c for c in result.cells if (c["method"], c["seed"]) == (method, seed)]
            assert cells[0]["architecture"] == cells[1]["architecture"]
            steps = len(hard_source().train_batches(16))
            wanted = [math.ceil(round(cell["train_epochs"] * steps) / steps) for cell in cells]
            assert [len(cell["epochs"]) for cell in cells] == wanted


def test_a_search_that_is_not_counted_costs_no_training():
    config = tiny_config(methods="tas l1", transfers="init+kd", seeds=0, count_search=False)
    result = tas.compare(fresh(), hard_source(), config=config)
    assert [cell["train_epochs"] for cell in result.cells] == [12, 12]


def test_work_of_several_versions_is_told(finished, tmp_path):
    folder, mine = finished[0], tmp_path / "mine"
    shutil.copytree(folder, mine)
    file = mine / "cells" / "l1-50pctmacs-none-seed0.json"
    cell = json.loads(file.read_text())
    file.write_text(json.dumps({**cell, "versions": {**cell["versions"], "torch": "9.9"}}))
    again = tas.compare(fresh(), hard_source(), config=tiny_config(), output=mine, resume=True)
    assert set(again.summary["versions"]["torch"].split(" and ")) == {"9.9", cell["versions"]["torch"]}
    assert f"torch {again.summary['versions']['torch']}" in (mine / "compare.md").read_text()


def test_the_cost_of_a_search_is_told_in_epochs_of_the_full_model(finished):
    _, result = finished
    for cell in result.cells:
        seconds = result.summary["epoch_seconds"][str(cell["seed"])]
        assert cell["search_in_epochs"] == pytest.approx(cell["search_seconds"] / seconds)


def test_nothing_tells_where_it_ran(finished):
    import getpass
    import socket

    folder, _ = finished
    text = "".join((folder / name).read_text() for name in ("compare.json", "compare.md"))
    text += (folder / "compare.html").read_text().partition("</main>")[0]
    for secret in (socket.gethostname(), str(Path.home()), str(folder), str(Path(tas.__file__).parent)):
        assert secret not in text
    assert f"/{getpass.getuser()}" not in text


def test_the_same_seeds_give_the_same_numbers(finished):
    _, result = finished
    again = tas.compare(fresh(), hard_source(), config=tiny_config())
    assert numbers(again) == numbers(result)
    assert again.folder is None


def test_resuming_does_what_is_missing_and_nothing_else(finished, tmp_path, monkeypatch):
    folder, result = finished
    mine = tmp_path / "copy"
    shutil.copytree(folder, mine)
    victim = next(path for path in (mine / "cells").iterdir() if "init+kd" in path.name)
    before = json.loads(victim.read_text())
    victim.unlink()
    done = []
    real = work.do
    monkeypatch.setattr(pool, "do", lambda bench, job: (done.append(job.name), real(bench, job)))
    again = tas.compare(fresh(), hard_source(), config=tiny_config(), output=mine, resume=True)
    assert done == [victim.stem]
    assert numbers(again) == numbers(result)
    assert json.loads(victim.read_text())["architecture"] == before["architecture"]
    done.clear()
    tas.compare(fresh(), hard_source(), config=tiny_config(), output=mine, resume=True)
    assert done == []


def test_a_cell_interrupted_in_its_training_goes_on_and_ends_the_same(finished, tmp_path, monkeypatch):
    folder, result = finished
    mine = tmp_path / "copy"
    shutil.copytree(folder, mine)
    next((mine / "cells").iterdir()).unlink()
    add = tas.Record.add

    def interrupt(self, stage, **values):
        add(self, stage, **values)
        if values.get("epoch") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tas.Record, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tas.compare(fresh(), hard_source(), config=tiny_config(), output=mine, resume=True)
    monkeypatch.setattr(tas.Record, "add", add)
    again = tas.compare(fresh(), hard_source(), config=tiny_config(), output=mine, resume=True)
    assert numbers(again) == numbers(result)
    assert {path.name for path in mine.iterdir()} == FILES


def test_another_comparison_in_the_folder_is_refused(finished):
    folder, _ = finished
    with pytest.raises(tas.RunError, match="is in use; choose another folder, or resume"):
        tas.compare(fresh(), hard_source(), config=tiny_config(), output=folder)
    with pytest.raises(tas.RunError, match="differs from the options given"):
        tas.compare(fresh(), hard_source(), config=tiny_config(budgets="40%"), output=folder, resume=True)


def test_resuming_may_add_methods_transfers_seeds_and_budgets(tmp_path, monkeypatch):
    folder, done, real = tmp_path / "run", [], work.do
    small = tiny_config(methods="l1", seeds=(0,), transfers="none")
    tas.compare(fresh(), hard_source(), config=small, output=folder)
    monkeypatch.setattr(pool, "do", lambda bench, job: (done.append(job.name), real(bench, job)))
    config = tiny_config(methods="tas l1", seeds=(0, 1), transfers="none init+kd", budgets="50% 60%")
    result = tas.compare(fresh(), hard_source(), config=config, output=folder, resume=True)
    assert (result.failed, len(result.cells)) == ([], 2 * 2 * 2 * 2)
    assert "l1-50pctmacs-none-seed0" not in done
    assert len(done) == len(set(done)) == 1 + 7 + 15  # a clock, searches, cells
    assert result.summary["config"]["seeds"] == [0, 1]
    tas.compare(fresh(), hard_source(), config=config, output=folder, resume=True)
    assert len(done) == 1 + 7 + 15
    anew = tas.compare(fresh(), hard_source(), config=config)
    assert numbers(anew) == numbers(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"methods": "l2"}, "differs from the options given"),
     ({"methods": {"l1": {"method": "l1", "options": {"space.round_to": 4}}}}, "differs from the options given"),
     ({"seeds": (1,)}, "differs from the options given"),
     ({"count_search": False}, "differs from the options given")],
)  # fmt: skip
def test_resuming_may_change_nothing_that_was_done(tmp_path, options, message):
    folder, config = tmp_path / "run", {"methods": "l1", "seeds": (0,), "transfers": "none"}
    tas.compare(fresh(), hard_source(), config=tiny_config(**config), output=folder)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(tas.RunError, match=message):
        tas.compare(fresh(), hard_source(), config=tiny_config(**{**config, **options}), output=folder, resume=True)
    assert (folder / "config.yaml").read_text() == before


def test_a_failed_cell_is_told_and_tried_again_by_resuming(tmp_path, monkeypatch):
    config = tiny_config(methods="tas", seeds=(0,), transfers="none kd")
    real = work.train

    def fail(*args, teacher=None, **options):
        if teacher is not None:
            raise tas.TrainingError("the loss of train became nan")
        return real(*args, teacher=teacher, **options)

    monkeypatch.setattr(work, "train", fail)
    result = tas.compare(fresh(), hard_source(), config=config, output=tmp_path / "run")
    assert result.failed == [{"job": "cell tas-50pctmacs-kd-seed0", "error": "the loss of train became nan"}]
    assert [cell["transfer"] for cell in result.cells] == ["none"]
    for name in ("compare.md", "compare.html"):
        assert "the loss of train became nan" in (tmp_path / "run" / name).read_text()
    monkeypatch.setattr(work, "train", real)
    again = tas.compare(fresh(), hard_source(), config=config, output=tmp_path / "run", resume=True)
    assert (again.failed, len(again.cells)) == ([], 2)


def test_without_its_teacher_nothing_can_be_done_and_that_is_told(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(work, "train", fail)
    config = tiny_config(methods="tas", seeds=(0,), transfers="none")
    result = tas.compare(fresh(), hard_source(), config=config, output=tmp_path / "run", train_teacher=True)
    assert [one["error"] for one in result.failed] == [
        "ZeroDivisionError: bug", "not done, for teacher failed", "not done, for teacher failed",
        "not done, for search tas-50pctmacs-seed0 failed",
    ]  # fmt: skip
    assert (result.full, result.rows) == (None, [])
    assert "Nothing has been measured" in (tmp_path / "run" / "compare.html").read_text()


@pytest.mark.slow
def test_worker_processes_give_the_same_numbers(finished):
    _, result = finished
    config = tiny_config(workers=2, threads=1, seeds=(0,))
    before = torch.get_num_threads()
    found = tas.compare(fresh(), hard_source(), config=config)
    assert torch.get_num_threads() == before
    assert found.failed == []
    wanted = numbers(result)
    for name, values in numbers(found).items():
        assert values == pytest.approx(wanted[name])
    assert found.summary["machine"]["workers"] == 2


def test_a_folder_whose_full_model_was_trained_needs_that_to_go_on(tmp_path):
    config = tiny_config(methods="l1", transfers="none", seeds=(0,))
    for was_trained in (True, False):
        folder = tmp_path / str(was_trained)
        tas.compare(fresh(), hard_source(), config=config, output=folder, train_teacher=was_trained)
        more = replace(config, seeds=(0, 1))
        with pytest.raises(tas.RunError, match=f"resume with train_teacher={was_trained}"):
            tas.compare(fresh(), hard_source(), config=more, output=folder, resume=True, train_teacher=not was_trained)


def test_seeds_share_what_was_traced(monkeypatch):
    count = []
    real = work.open_choices
    monkeypatch.setattr(work, "open_choices", lambda *given: count.append(1) or real(*given))
    tas.compare(fresh(), hard_source(), config=tiny_config(methods="l1 uniform", transfers="none"))
    assert count == [1]


@pytest.mark.slow
def test_a_worker_that_dies_before_it_reads_its_job_fails_that_alone(tmp_path):
    config = tiny_config(methods="l1", transfers="none", seeds=(0,), workers=2)
    source = hard_source()
    source.__class__ = DeadlySource
    found = tas.compare(fresh(), source, config=config, output=tmp_path / "run")
    assert found.failed
    assert all("ended with code 7" in one["error"] or "not done" in one["error"] for one in found.failed)
    assert (tmp_path / "run" / "compare.json").is_file()


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_job_alone(tmp_path):
    config = tiny_config(methods="tas l1", transfers="none", seeds=(0,), workers=2)
    found = tas.compare(Deadly(), hard_source(), config=config, output=tmp_path / "run")
    assert {one["job"] for one in found.failed} == {"clock seed0"}
    assert "ended with code 7" in found.failed[0]["error"]
    assert len(found.cells) == 2


def test_what_cannot_be_sent_to_workers_is_done_here():
    model = fresh()
    model.secret = lambda: None
    config = tiny_config(workers=2, methods="l1", transfers="none", seeds=(0,))
    with pytest.warns(UserWarning, match="cannot be sent to worker processes .* Pass rebuild="):
        found = tas.compare(model, hard_source(), config=config)
    assert found.summary["machine"]["workers"] == 1
    assert len(found.cells) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"budgets": "0.01%"}, tas.BudgetError, "the smallest has"),
     ({"methods": "tas tas-depth", "budgets": "9%"}, tas.BudgetError, "^method tas-depth: no architecture in this"),
     ({"methods": "tas l1", "budgets": "5%"}, tas.BudgetError, "method l1 cuts channels and keeps every block"),
     ({"methods": "tas:keep=stm"}, tas.ConfigError, "no module of TinyNet is called 'stm'"),
     ({"transfers": "hints", "job": CompressConfig(train=replace(HINTS, layers="nowhere"))},
      tas.ConfigError, "nowhere"),
     ({"methods": "l1:train.layers=nowhere", "transfers": "hints", "job": CompressConfig(train=HINTS)},
      tas.ConfigError, "method l1:train.layers=nowhere: there is no layer 'nowhere'"),
     ({"methods": "sfp"}, tas.ConfigError, "method sfp passes over the training set 20 times in its search alone, but "
      "train.epochs gives search and training 12 together; give more"),
     ({"methods": "tas:search.halving_steps=400"}, tas.ConfigError, "in its search alone.* shorten the search")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        tas.compare(fresh(), hard_source(), config=tiny_config(**options), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_no_number_costs_its_cell_alone(tmp_path, monkeypatch):
    qualities = iter([50.0, 40.0, math.nan])  # of the full model and two cells
    monkeypatch.setattr(work, "evaluate", lambda *args, **kwargs: next(qualities))
    config = tiny_config(methods="l1 uniform", transfers="init", seeds=(0,))
    found = tas.compare(fresh(), hard_source(), config=config, output=tmp_path / "run")
    assert [row["method"] for row in found.rows] == ["l1"]
    assert "the metric of the trained network is nan on the test set" in found.failed[0]["error"]
    monkeypatch.undo()
    found = tas.compare(fresh(), hard_source(), config=config, output=tmp_path / "run", resume=True)
    assert found.failed == []
    assert len(found.cells) == 2


def test_other_tasks_bring_their_own_loss_and_metric(tmp_path):
    def loss(outputs, targets):
        return torch.nn.functional.mse_loss(outputs[:, 0], targets.float())

    config = tiny_config(methods="tas l1", transfers="init+kd", seeds=(0,))

    def closeness(outputs, targets):
        return -loss(outputs, targets)

    run = tmp_path / "run"
    found = tas.compare(fresh(), hard_source(), config=config, loss=loss, metric=closeness, output=run)
    assert found.failed == []
    assert all(cell["accuracy"] < 0 for cell in found.cells)
    assert "| closeness | MACs |" in (run / "compare.md").read_text()
    page = (run / "compare.html").read_text().partition("</main>")[0]
    assert "<h3>test closeness, transfer init+kd</h3>" in page
    assert "accuracy" not in page.lower().partition("<h2>origin")[0]


def test_the_page_needs_no_network_and_no_other_file(finished):
    folder, _ = finished
    text = (folder / "compare.html").read_text()
    page = text.partition("</main>")[0]  # then plotly.js
    assert "src=" not in page
    assert "<link" not in page
    assert "prefers-color-scheme: dark" in text
    assert page.count('class="figure"') == 2 + 1  # a scatter per transfer, bars per budget
