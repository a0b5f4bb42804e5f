"""The benchmark of speed, on a case small enough for every run of the tests; `make bench` measures the real ones."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import load_script

bench = load_script("bench")
SMALL = f"{Path(__file__).with_name('toys.py')}:build_resnet"
TINY = f"{Path(__file__).with_name('toys.py')}:build"


def test_a_search_step_is_measured_against_training_and_written(tmp_path, monkeypatch, capsys):
    tiny = bench.Case("ratio", 1e9, bench.search_step(SMALL, 4, 8))
    loader = bench.Case("share", 1.0, bench.loader_share(SMALL, 4, 8))
    gpu = bench.Case("ratio", 1.0, bench.search_step(SMALL, 4, 8, device="cuda"), needs_gpu=True)
    monkeypatch.setattr(bench, "CASES", {"tiny": tiny, "loader": loader, "tiny:gpu": gpu})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.main(["--pairs", "2", "--write", str(tmp_path / "bench.json")])
    found = json.loads((tmp_path / "bench.json").read_text())
    measured, share, skipped = found["rows"]
    assert 0 < share["measured"] < 1
    assert measured["verdict"] == "met"
    assert measured["pairs"] == 2
    assert 0 < measured["lowest"] <= measured["measured"] <= measured["highest"]
    assert (skipped["verdict"], skipped["skipped"], skipped["measured"]) == ("skipped", "no GPU here", None)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert "tiny:gpu" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_measured_in_processes_of_their_own():
    (ratio,) = bench.peak_memory(SMALL, 16, 16)(1)
    assert 0.2 < ratio < 5


def test_an_epoch_is_timed_in_two_processes_and_in_one(monkeypatch, capsys):
    calls = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        """Only the command of one process is followed, here: that two agree is tested elsewhere."""
        calls.append(command[command.index("--nproc-per-node") + 1])
        assert command[command.index("--epoch-of") :] == ["--epoch-of", SMALL, "4", "8"]
        if calls[-1] == "1":
            bench.main(command[command.index("--epoch-of") :])
        return subprocess.CompletedProcess(command, 0, "7.0" if calls[-1] == "2" else capsys.readouterr().out)

    monkeypatch.setattr(bench.subprocess, "run", run)
    (ratio,) = bench.process_share(SMALL, 4, 8)(1)
    assert calls == ["2", "1"]
    assert 0 < ratio < 1e6


def test_both_sides_can_be_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    searching, training = bench.sides(TINY, 4, 8, execution="dense", compile=True)
    searching()
    training()
    assert len(compiled) == 2, "supernet and full model"


def test_sides_run_in_turn_and_the_first_pair_does_not_count():
    calls = []
    ratios = bench.in_turn(lambda: calls.append("a"), lambda: calls.append("b"), 2)
    assert calls == ["a", "b"] * 3
    assert len(ratios) == 2


@pytest.mark.parametrize(("measured", "verdict"), [(0.8, "met"), (0.9, "missed"), (None, "skipped")])
def test_a_figure_above_its_target_is_missed(measured, verdict):
    assert bench.Row("a", "ratio", 0.85, measured).verdict == verdict


def test_half_the_latency_is_of_at_most_half_the_multiply_adds():
    import tas

    model = tas.models.load("cifar_resnet:20").eval()
    graph = tas.trace(model, torch.zeros(1, 3, 32, 32))
    small = bench._half(model, graph)
    assert tas.trace(small, torch.zeros(1, 3, 32, 32)).macs() <= graph.macs() / 2


def test_unknown_cases_are_refused_and_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])
    assert "no case is called nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    assert "python benchmarks/bench.py --only" in capsys.readouterr().out
