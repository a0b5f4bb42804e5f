"""Two processes and one end with the same weights, logits and architecture; one of the two writes and speaks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from toys import TinyNet

import tas
from tas.record import Record
from tas.run import read_summary

ROOT = Path(__file__).parents[1]
COMPRESS = (
    "compress --model tests/toys.py:build --data digits --search.architectures 4 --search.halving-steps 4 "
    "--search.halving-images 64 --search.held-out-images 64 --train.epochs 1 --teacher.epochs 1 --json --output"
)


def environment() -> dict[str, str]:
    """Of a child, which finds this source and uses one thread."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(folder: Path, count: int = 2) -> list[dict]:
    """What each of several gloo processes found; the names in the environment are those torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", processes.__file__, str(folder)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """One for every number of processes, with the graph: tracing takes long to import."""
    graph, found = tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8)), [tmp_path_factory.mktemp(name) for name in "12"]
    for folder in found:
        (folder / "graph.json").write_text(graph.to_json())
    return found


@pytest.fixture(scope="module")
def both(folders) -> list[dict]:
    return launch(folders[1])


@pytest.fixture(scope="module")
def one(folders) -> dict:
    return processes.work(folders[0])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("part", ["supernet", "small"])
def test_weights_logits_and_statistics_are_those_of_one_process(both, one, rank, part):
    assert both[rank][part].keys() == one[part].keys()
    for name, value in one[part].items():
        torch.testing.assert_close(both[rank][part][name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_architecture_and_all_losses_are_those_of_one_process(both, one, rank):
    assert both[rank]["found"] == one["found"]
    assert both[rank]["losses"] == pytest.approx(one["losses"], abs=2e-5)  # rounded in the record
    assert both[rank]["train losses"] == pytest.approx(one["train losses"], abs=2e-5)


def test_every_batch_is_split(both, one):
    assert one["sizes"] == {16}
    assert [found["sizes"] for found in both] == [{8}, {8}]


def test_an_error_of_the_main_process_reaches_all(both):
    assert [found["error"] for found in both] == ["the main process has failed"] * 2


def test_the_main_process_alone_writes_and_prints(both, folders):
    assert [found["code"] for found in both] == [0, 0]
    assert "test accuracy" in both[0]["said"]
    assert both[1]["said"] == ""
    run = folders[1] / "run"
    assert sorted(file.name for file in run.iterdir()) == ["config.yaml", "model.safetensors", "record.jsonl"]
    assert len(Record.read(run / "record.jsonl").rows) == 1


@pytest.mark.slow
def test_the_whole_job_runs_under_torchrun(tmp_path):
    command = f"-m torch.distributed.run --standalone --nproc-per-node 2 -m tas.cli {COMPRESS} {tmp_path / 'run'}"
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == read_summary(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
