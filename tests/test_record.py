import json
import platform

import pytest
import torch

from tas.errors import RunError
from tas.record import Record, versions


def test_rows_are_kept_in_memory_without_a_path():
    record = Record()
    record.add("search", epoch=0, loss=0.5)
    assert record.rows == [{"stage": "search", "epoch": 0, "loss": 0.5}]


def test_rows_are_appended_as_json_lines_and_read_again(tmp_path):
    path = tmp_path / "deep" / "record.jsonl"
    record = Record(path)
    record.add("search", epoch=0, loss=0.5)
    record.add("train", text="ü\u2028\n")
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == record.rows
    assert Record(path).rows == record.rows


def test_an_epoch_done_again_counts_once_with_its_later_row():
    record = Record()
    for epoch, loss in ((0, 3.0), (1, 2.0), (1, 1.5), (2, 1.0)):
        record.add("train", epoch=epoch, loss=loss, seconds=2.0)
    record.add("train", note="no epoch")
    record.add("search", epoch=0)
    assert [row["loss"] for row in record.epochs("train")] == [3.0, 1.5, 1.0]
    assert record.seconds("train") == 6.0
    assert record.seconds("search") == 0.0


def test_a_part_or_round_that_was_done_again_counts_once():
    record = Record()
    record.add("search", part="saliency", seconds=1.0)
    for number, seconds in ((0, 2.0), (1, 4.0), (1, 8.0)):
        record.add("search", part="halving", round=number, seconds=seconds)
    assert record.seconds("search") == 1.0 + 2.0 + 8.0


@pytest.mark.parametrize("tail", ['{"stage": "tr', '{"stage": "train", "epoch": 1}', "\x00\x00"])
def test_a_line_cut_short_by_a_kill_is_dropped_and_the_run_goes_on_for_good(tmp_path, tail):
    path = tmp_path / "record.jsonl"
    Record(path).add("train", epoch=0)
    whole = path.read_text()
    path.write_text(whole + tail)
    for epoch in (1, 2):
        record = Record(path)
        assert [row["epoch"] for row in record.rows] == list(range(epoch))
        record.add("train", epoch=epoch)
    assert [row["epoch"] for row in Record(path).rows] == [0, 1, 2]


@pytest.mark.parametrize("line", ["not json", "\xff", '{"a":'])
def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "record.jsonl"
    path.write_bytes(b'{"stage": "train"}\n' + line.encode("latin1") + b'\n{"stage": "train"}\n')
    with pytest.raises(RunError, match=r"record.jsonl, line 2, is not JSON; move the file away to start anew"):
        Record(path)


@pytest.mark.parametrize("line", ["3", "[]", '{"epoch": 1}'])
def test_a_line_that_is_no_row_is_an_error(tmp_path, line):
    path = tmp_path / "record.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match="line 1, is not a row of a record"):
        Record(path)


def test_an_empty_file_is_an_empty_record(tmp_path):
    (tmp_path / "record.jsonl").touch()
    assert Record(tmp_path / "record.jsonl").rows == []


def test_versions_name_python_and_what_results_depend_on():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert set(found) == {"python", "tas-pruning", "torch", "torchvision", "numpy", "accelerate"}


def test_a_full_disk_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*record.jsonl \(.+\); free some space, then go on with resume"):
        Record(tmp_path / "file" / "record.jsonl").add("train", epoch=0)


def test_a_record_that_is_being_written_is_read_without_its_half_line_and_left_as_it_is(tmp_path):
    path = tmp_path / "record.jsonl"
    content = b'{"stage": "search", "epoch": 0}\n{"stage": "sea'
    path.write_bytes(content)
    record = Record.read(path)
    assert record.epochs("search") == [{"stage": "search", "epoch": 0}]
    assert path.read_bytes() == content
    record.add("search", epoch=1)  # kept in memory alone
    assert path.read_bytes() == content
    assert Record.read(tmp_path / "none.jsonl").rows == []


def test_a_stage_that_began_anew_is_told_from_there():
    record = Record()
    for epoch, loss in ((0, 3.0), (1, 2.0), (2, 1.5), (0, 1.25), (1, 1.0)):
        record.add("train", epoch=epoch, loss=loss, seconds=2.0)
    assert [row["loss"] for row in record.epochs("train")] == [1.25, 1.0]
    assert record.seconds("train") == 4.0
