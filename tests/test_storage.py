import os
import subprocess
import sys

import pytest
import torch

from tas.errors import RunError
from tas.storage import is_left_over, load_state, restore_epoch, save_epoch, save_state, write_text, write_with


def test_a_file_is_written_whole_with_its_folder(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        RunError, match=r"cannot write .*file \(No space left on device\); choose another folder or free some space"
    ):
        write_with(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_of_the_writer_itself_passes_and_leaves_nothing(tmp_path):
    def fail(temporary):
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_with(tmp_path / "file", fail)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write .*inside"):
        write_text(tmp_path / "file" / "inside", "x")


def test_a_state_survives(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, {"epochs": 3, "weights": {"a": torch.arange(4.0)}, "name": "x"})
    state = load_state(path)
    assert (state["epochs"], state["name"]) == (3, "x")
    assert torch.equal(state["weights"]["a"], torch.arange(4.0))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half of an archive"])
def test_a_damaged_state_is_an_error_with_the_way_out(tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(
        RunError, match=r"state.pt is not a readable checkpoint \(\w+\); delete it to start this stage anew"
    ):
        load_state(path)


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_nothing_in_a_state_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Payload()}, "state.pt")
    with pytest.raises(RunError):
        load_state(tmp_path / "state.pt")
    assert os.listdir(tmp_path) == ["state.pt"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
def test_a_state_that_does_not_fit_on_the_disk_is_an_error_of_ours(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match="cannot write .*state.pt .*free some space"):
            save_state(tmp_path / "state.pt", {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_every_part_of_a_stage_gets_its_state_back(tmp_path):
    path, layer = tmp_path / "stage.pt", torch.nn.Linear(2, 2)
    save_epoch(path, 3, "options", {"layer": layer})
    fresh = torch.nn.Linear(2, 2)
    assert restore_epoch(path, "options", {"layer": fresh}) == 3
    assert torch.equal(fresh.weight, layer.weight)


def test_a_checkpoint_of_something_else_is_an_error_with_the_way_out(tmp_path):
    path, parts = tmp_path / "stage.pt", {"layer": torch.nn.Linear(2, 2)}
    for state in ([1, 2], {"epochs": 1}):
        torch.save(state, path)
        with pytest.raises(RunError, match="is not a checkpoint of this stage; delete it"):
            restore_epoch(path, "options", parts)
    save_epoch(path, 1, "options", {"layer": torch.nn.Linear(3, 2)})
    with pytest.raises(RunError, match="does not fit this model"):
        restore_epoch(path, "options", parts)
    with pytest.raises(RunError, match="written with other options"):
        restore_epoch(path, "other options", parts)


def test_files_have_the_mode_that_new_files_have_whoever_writes_them(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "new").touch()
    write_with(tmp_path / "x.safetensors", lambda path: save_file({"a": torch.zeros(2)}, str(path)))
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_only_temporary_files_of_ended_processes_are_left_over(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        names = {f".a.pt.{living.pid}.tmp": False, f".a.pt.{ended.pid}.tmp": True, f".a.pt.{os.getpid()}.tmp": True}
        assert {name: is_left_over(tmp_path / name) for name in [*names, "a.pt"]} == {**names, "a.pt": False}
        living.communicate(b"\n")
