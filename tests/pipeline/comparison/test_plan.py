"""Which jobs a comparison consists of, and in which order they can be done."""

from dataclasses import replace

import pytest
import yaml

from tas.budget import Budget
from tas.errors import BudgetError, ConfigError
from tas.pipeline.comparison.plan import CompareConfig, plan
from tas.pipeline.comparison.pool import Queue
from tas.pipeline.compress import CompressConfig, short_search, short_train

JOB = CompressConfig(search=replace(short_search(), epochs=4), train=replace(short_train(), epochs=6))


def test_every_cell_follows_one_search_that_its_transfers_share():
    config = CompareConfig(methods="tas l1", transfers="none kd", seeds="0 1", budgets="50% 30%", job=JOB)
    jobs = plan(config, train_teacher=True)
    kinds = [job.kind for job in jobs]
    assert {kind: kinds.count(kind) for kind in kinds} == {"teacher": 1, "clock": 2, "search": 8, "cell": 16}
    place = {job.file: index for index, job in enumerate(jobs)}
    assert len(place) == len(jobs)
    assert all(place[needed] < index for index, job in enumerate(jobs) for needed in job.needs)
    for search in (job for job in jobs if job.kind == "search"):
        cells = [job for job in jobs if job.needs == (search.file,)]
        assert [cell.transfer for cell in cells] == ["none", "kd"]
        for cell in cells:
            assert (cell.seed, cell.budget, cell.method) == (search.seed, search.budget, search.method)


@pytest.mark.parametrize(("searched", "counted"), [(4, 2), (1, 5), (0, 6), (0.31, 5.69)])
def test_what_a_search_has_read_is_missing_from_the_training(searched, counted):
    config = CompareConfig(methods="tas", job=JOB)
    assert config.epochs_after(searched, config.rows[0]) == counted
    assert replace(config, count_search=False).epochs_after(searched, config.rows[0]) == 6


def test_how_long_a_search_may_be_is_not_judged_by_the_plan():
    config = CompareConfig(methods="tas-paper:search.epochs=9", job=replace(JOB, search=short_search()))
    (cell,) = {job.work for job in plan(config, train_teacher=False) if job.kind == "cell"}
    assert cell == 5  # the least, for the bar alone


@pytest.mark.parametrize("methods", ["uniform l1", "tas l1", "tas:search.epochs=1 l1"])
def test_what_a_rival_trains_does_not_depend_on_its_neighbours(methods):
    jobs = plan(CompareConfig(methods=methods, job=JOB), train_teacher=False)
    assert {job.work for job in jobs if job.kind == "cell" and job.method.name == "l1"} == {600}


@pytest.mark.parametrize("searched", [6, 10])
def test_a_search_that_leaves_nothing_to_train_is_refused(searched):
    config = CompareConfig(methods="tas", job=JOB)
    with pytest.raises(ConfigError, match=f"the training set {searched} times in its search alone, but .* 6 together"):
        config.epochs_after(searched, config.rows[0])


def test_lists_may_be_text():
    config = CompareConfig(transfers="init+none, kd", seeds="3,4", budgets="50%, params=30%")
    assert config.transfers == ("init", "kd")
    assert config.seeds == (3, 4)
    assert config.budgets == (Budget(macs="50%"), Budget(params="30%"))
    assert CompareConfig(seeds=7).seeds == (7,)
    assert CompareConfig(budgets={"macs": "50%", "params": "30%"}).budgets == (Budget(macs="50%", params="30%"),)
    assert CompareConfig(budgets=Budget()).budgets == (Budget(macs="50%"),)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"seeds": "a"}, ConfigError, "seeds has 'a'; give whole numbers"),
     ({"budgets": "latency=60%"}, ConfigError, "knows macs and params alone"),
     ({"seeds": ""}, ConfigError, "seeds is empty"),
     ({"seeds": [1.5]}, ConfigError, "seeds has 1.5; give whole numbers"),
     ({"seeds": [True]}, ConfigError, "seeds has True; give whole numbers"),
     ({"methods": "l1:train.temperature=1", "transfers": "none"}, ConfigError, "temperature has no effect, for no"),
     ({"budgets": "many"}, BudgetError, "is not understood"),
     ({"budgets": "mac=3%"}, BudgetError, "'mac' is unknown"),
     ({"transfers": "kd inti"}, ConfigError, "there is no transfer 'inti' .did you mean init"),
     ({"workers": -1}, ConfigError, "workers is -1"),
     ({"threads": 0}, ConfigError, "threads is 0"),
     ({"methods": "sfp:rivals.sfp_epoch=3"}, ConfigError, "did you mean sfp_epochs"),
     ({"methods": "tas:search.fragmets=3"}, ConfigError, "did you mean fragments")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        CompareConfig(**options)


def test_labels_that_would_share_a_file_are_refused():
    config = CompareConfig(methods={"a:b": "tas", "a/b": "l1"})
    with pytest.raises(ConfigError, match="methods a:b and a/b would share files"):
        plan(config, train_teacher=False)


def test_the_config_survives_yaml():
    config = CompareConfig(methods={"one": "tas:search.fragments=1", "l1": None}, budgets="50% params=30%", job=JOB)
    text = yaml.safe_dump(config.to_dict(), sort_keys=False)
    found = yaml.safe_load(text)
    again = CompareConfig(**{name: found[name] for name in ("methods", "transfers", "seeds", "budgets")}, job=JOB)
    assert again == config


def test_what_needs_a_failed_job_fails_and_the_others_go_on():
    config = CompareConfig(methods="tas l1", transfers="none kd", seeds=(0,), job=JOB)
    jobs = plan(config, train_teacher=False)
    queue, done, failed = Queue(jobs, {"teacher.json"}), [], []
    while (job := queue.take()) is not None:
        error = "no luck" if job.kind == "search" and job.name.startswith("tas") else None
        for ended, reason in queue.end(job, error):
            (failed if reason else done).append((ended.kind, ended.name.split("-")[0], reason))
    assert [item[:2] for item in failed] == [("search", "tas"), ("cell", "tas"), ("cell", "tas")]
    assert failed[1][2] == "not done, for search tas-50pctmacs-seed0 failed"
    assert [item[:2] for item in done] == [("clock", "seed0"), ("search", "l1"), ("cell", "l1"), ("cell", "l1")]


def test_a_budget_in_two_spellings_is_refused_since_its_cells_would_share_a_row():
    with pytest.raises(ConfigError, match="compare budgets has 50% of macs in two spellings"):
        CompareConfig(budgets=["50%", 0.5])
    assert len(CompareConfig(budgets=["50%", "50%", "50.1%"]).budgets) == 2  # type: ignore[arg-type]
