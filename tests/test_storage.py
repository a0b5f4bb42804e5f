import os

import pytest
import torch

from tas.errors import RunError
from tas.storage import load_state, save_state, write_text, write_with


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
