"""Two processes and one end with the same weights, logits and architecture; one of the two writes and speaks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch

from tas import Record


def launch(folder: Path, count: int = 2) -> list[dict]:
    """What each of several gloo processes found; the names in the environment are those torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(count)}
    root = str(Path(__file__).parents[1])
    shared["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    running = [
        subprocess.Popen(
            [sys.executable, processes.__file__, str(folder)], cwd=root, stderr=subprocess.PIPE, text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )  # fmt: skip
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
def both(tmp_path_factory) -> list[dict]:
    return launch(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    return processes.work(tmp_path_factory.mktemp("one"))


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


def test_an_error_of_the_main_process_reaches_all(both):
    assert [found["error"] for found in both] == ["the main process has failed"] * 2


def test_the_main_process_alone_writes_the_run_and_prints(both, tmp_path_factory):
    assert [found["code"] for found in both] == [0, 0]
    assert "pruned" in both[0]["said"]
    assert both[1]["said"] == ""
