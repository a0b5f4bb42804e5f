import json
from dataclasses import replace

import pytest
import torch
from toys import TinyNet

import tas
from tas.decode import decode
from tas.record import Record


@pytest.fixture(scope="module")
def scores() -> tas.Scores:
    graph = tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    space = tas.SearchSpace.of(graph)
    draw = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(len(sizes), generator=draw).log_softmax(0).tolist()
            for name, sizes in (*space.widths.items(), *space.depths.items())}  # fmt: skip
    return tas.Scores(rows, graph, space)


@pytest.fixture
def run(scores, tmp_path):
    (tmp_path / "graph.json").write_text(scores.graph.to_json())
    (tmp_path / "scores.json").write_text(json.dumps(scores.to_dict()))
    return tmp_path


def test_scores_read_from_a_run_are_those_that_were_written(scores, run):
    assert tas.Scores.read(run) == scores


@pytest.mark.parametrize("budget", ["60%", {"params": "50%"}, tas.Budget(macs="70%", params="60%")])
def test_every_budget_is_decoded_from_the_same_scores(scores, budget):
    found = scores.decode(budget)
    assert tas.Budget.of(budget).holds(scores.graph, found)
    assert found == decode(scores.log_probabilities, scores.graph, scores.space, tas.Budget.of(budget))


def test_a_budget_that_cannot_be_reached_names_the_smallest_cost_as_in_a_search(scores):
    with pytest.raises(tas.BudgetError, match="no architecture in this space has .* macs or fewer; the smallest has"):
        scores.decode("0.1%")
    with pytest.raises(tas.BudgetError, match="a latency needs times measured on this machine"):
        scores.decode("60ms")


@pytest.mark.parametrize("name", ["graph.json", "scores.json"])
def test_a_run_without_scores_says_how_to_get_them(run, name):
    (run / name).unlink()
    with pytest.raises(tas.RunError, match=f"has no {name}, .*; finish the run with --resume, or search anew"):
        tas.Scores.read(run)


@pytest.mark.parametrize("damage", [
    lambda value: "{", lambda value: [], lambda value: {**value, "widths": {}}, lambda value: {**value, "depths": None},
    lambda value: {**value, "log_probabilities": {**value["log_probabilities"], "stem.0": [0.0]}},
    lambda value: {**value, "log_probabilities": {**value["log_probabilities"], "blocks": [0.0, float("nan"), 0.0]}},
    lambda value: {**value, "widths": {**value["widths"], "stem.0": [size + 1 for size in value["widths"]["stem.0"]]}},
])  # fmt: skip
def test_damaged_scores_are_refused(scores, run, damage):
    found = damage(scores.to_dict())
    (run / "scores.json").write_text(found if isinstance(found, str) else json.dumps(found))
    with pytest.raises(tas.RunError, match=r"scores.json is not what a search has written .*; search anew"):
        tas.Scores.read(run)


def test_scores_of_another_space_are_refused_by_a_search(scores):
    from toys import tiny_source

    supernet = tas.Supernet(TinyNet(), scores.graph, scores.space)
    other = replace(scores, space=tas.SearchSpace.of(scores.graph, choose="width"))
    with pytest.raises(tas.ConfigError, match="the scores are of another search space"):
        tas.search(supernet, tiny_source(), budget="60%", scores=other)


def test_what_a_search_found_is_printed_as_costs_and_sizes(scores):
    smallest, full = scores.space.smallest, scores.graph.full
    costs, gap, head, *rows = repr(tas.SearchResult(smallest, scores, Record())).splitlines()
    macs = scores.graph.macs(smallest)
    assert costs.startswith(f"SearchResult: {macs:,} macs ({100 * macs / scores.graph.macs():.1f} %), ")
    assert (gap, head.split()) == ("", ["width", "or", "depth", "full", "found"])
    wanted = [[name, f"{full.widths[name]}", f"{size}"] for name, size in smallest.widths.items()]
    wanted += [[name, f"{full.depths[name]}", f"{size}"] for name, size in smallest.depths.items()]
    assert [row.split() for row in rows] == wanted
    assert repr(scores) == f"Scores of {len(full.widths)} widths and {len(full.depths)} depths"
