"""The report says what the files of the run say."""

import json

import pytest
import torch
from toys import TinyNet

import tas
from tas.pipeline.report import result_table

PROFILE = {"macs": 1000, "params": 50, "accuracy": 90.0, "latency_ms": 2.0}
SUMMARY = {
    "full": PROFILE,
    "pruned": {"macs": 480, "params": 20, "accuracy": 89.25, "latency_ms": 1.0},
    "budget": {"macs": "50%", "params": 25},
    "seconds": {"teacher": 0.0, "search": 12.0, "train": 3.0, "total": 20.0},
    "seed": 3,
    "versions": {"torch": "2.11"},
}


@pytest.fixture
def run(tmp_path):
    graph = tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    smallest = tas.SearchSpace.of(graph).smallest
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "graph.json").write_text(graph.to_json())
    (tmp_path / "architecture.json").write_text(smallest.to_json())
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    record = tas.Record(tmp_path / "record.jsonl")
    for epoch in range(50):
        record.add(
            "search", epoch=epoch, loss=1.5, held_out_loss=1.25, temperature=5.0, expected={"macs": 700 - epoch},
            most_probable={"macs": 500 + epoch},
        )  # fmt: skip
    return tmp_path


def test_the_result_table_compares_both_models():
    lines = result_table(SUMMARY).splitlines()
    assert lines[2] == "| accuracy | 90.00 % | 89.25 % | -0.75 points |"
    assert lines[3] == "| macs | 1,000 | 480 | 48.0 % |"
    assert lines[5] == "| latency | 2.000 ms | 1.000 ms | 50.0 % |"


def test_a_missing_accuracy_leaves_its_row_out():
    without = {**SUMMARY, "full": {**PROFILE, "accuracy": None}}
    assert "accuracy" not in result_table(without)


def test_the_report_has_sizes_dropped_blocks_frozen_axes_search_and_origin(run):
    text = tas.report(run).read_text()
    assert "Pruned to 48.0 % of the multiply-adds" in text
    assert "Budget: 50% of macs, 25 params; held." in text
    assert "| stem.0 | 8 | 2 |" in text
    assert "Dropped blocks: blocks.1, blocks.2." in text
    assert "| head.weight[0] | output of the model |" in text
    assert "| 1 | 1.500 | 1.250 | 5.00 | 700 macs | 500 macs |" in text
    assert "| 50 | 1.500 | 1.250 | 5.00 | 651 macs | 549 macs |" in text  # the last epoch is always there
    assert "seed: 3" in text
    assert "Seed 3; teacher 0 s, search 12 s" in text


def test_a_run_without_a_search_is_reported_too(run):
    (run / "record.jsonl").unlink()
    (run / "graph.json").unlink()
    (run / "config.yaml").unlink()
    text = tas.report(run).read_text()
    assert "Pruned to" in text
    assert "## Search" not in text
    assert "## Architecture" not in text


def test_an_unfinished_or_damaged_run_is_an_error(tmp_path):
    with pytest.raises(tas.RunError, match="finish it with --resume"):
        tas.report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(tas.RunError, match="is not JSON"):
        tas.report(tmp_path)
