import json

import pytest

from tas.architecture import Architecture
from tas.errors import ArchitectureError, RunError
from tas.run import CONFIG, REPORT, SUMMARY, RunFolder, read_as, read_summary


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.open(None, "config", resume=False)
    folder.write_json("a.json", {})
    folder.record().add("train", epoch=0)
    folder.drop_checkpoints()
    assert (folder.file("a"), folder.checkpoint("a")) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_made_and_holds_the_config(tmp_path):
    folder = RunFolder.open(tmp_path / "new" / "run", "seed: 1\n", resume=False)
    assert (tmp_path / "new" / "run" / CONFIG).read_text() == "seed: 1\n"
    assert folder.checkpoint("search") == tmp_path / "new" / "run" / "checkpoints" / "search.pt"


def test_an_empty_folder_is_taken(tmp_path):
    assert RunFolder.open(tmp_path, "x", resume=False).path == tmp_path


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(
        RunError, match=r"is in use; choose another folder, or resume the run that is there \(--resume\)"
    ):
        RunFolder.open(tmp_path, "x", resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(RunError, match="file is a file; give a folder for the results"):
            RunFolder.open(tmp_path / "file", "x", resume=resume)


def test_a_run_resumes_with_its_own_config_only(tmp_path):
    RunFolder.open(tmp_path, "seed: 1", resume=False).record().add("train", epoch=0)
    assert RunFolder.open(tmp_path, "seed: 1", resume=True).record().epochs("train") == [{"stage": "train", "epoch": 0}]
    with pytest.raises(RunError, match="config.yaml differs from the options given: seed .1 there, 2 here.; resume"):
        RunFolder.open(tmp_path, "seed: 2", resume=True)


@pytest.mark.parametrize(
    ("known", "given", "told"),
    [("a: {b: 1, c: 2}", "a: {b: 1, c: 3}", r"given: a\.c \(2 there, 3 here\); resume"),
     ("a: 1", "a: 1\nb: [x]", r'given: b \(nothing there, \["x"\] here\); resume'),
     ("{a: 1, b: 1, c: 1, d: 1, e: 1}", "{a: 2, b: 2, c: 2, d: 2, e: 2}", r"c \(1 there, 2 here\), 2 more; resume"),
     ("a: 1", "a:   1", "given; resume"), ("a: [", "a: 1", "given; resume"), ("a", "a: 1", "given; resume")],
)  # fmt: skip
def test_a_refused_config_says_where_it_differs(tmp_path, known, given, told):
    RunFolder.open(tmp_path, known, resume=False)
    with pytest.raises(RunError, match=told):
        RunFolder.open(tmp_path, given, resume=True)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(RunError, match=r"holds no run to resume \(it has no config.yaml\); start it without resume"):
        RunFolder.open(tmp_path / "absent", "x", resume=True)


def test_checkpoints_of_a_finished_run_are_dropped(tmp_path):
    folder = RunFolder.open(tmp_path, "x", resume=False)
    checkpoint = folder.checkpoint("search")
    assert checkpoint is not None
    checkpoint.parent.mkdir()
    checkpoint.touch()
    folder.drop_checkpoints()
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]


def test_a_summary_is_read_again(tmp_path):
    profile = {"macs": 3, "params": 2}
    summary = {"budget": {"macs": "50%"}, "seconds": {"train": 1.0}, "full": profile, "pruned": profile}
    RunFolder(tmp_path).write_json(SUMMARY, summary)
    assert read_summary(tmp_path) == summary == json.loads((tmp_path / SUMMARY).read_text())


def test_a_missing_summary_says_how_to_get_one(tmp_path):
    with pytest.raises(
        RunError, match=r"has no summary.json; give the folder of a finished run, or finish it with --resume"
    ):
        read_summary(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_summary_is_an_error(tmp_path, content):
    (tmp_path / SUMMARY).write_bytes(content)
    with pytest.raises(RunError, match=r"summary.json is not JSON \(.*\); repeat the run"):
        read_summary(tmp_path)


def test_a_run_killed_in_the_middle_of_a_write_goes_on_and_leaves_no_half_file(tmp_path):
    half = tmp_path / ".config.yaml.99999999.tmp"
    half.write_text("see")
    RunFolder.open(tmp_path, "seed: 1", resume=False)  # nothing but the half file: the folder is free
    (tmp_path / ".summary.json.99999999.tmp").touch()
    RunFolder.open(tmp_path, "seed: 1", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]


def test_a_run_killed_before_its_report_is_not_finished_and_one_killed_after_it_only_drops_its_checkpoints(tmp_path):
    checkpoint = RunFolder.open(tmp_path, "x", resume=False).checkpoint("train")
    assert checkpoint is not None
    checkpoint.parent.mkdir()
    checkpoint.touch()
    (tmp_path / SUMMARY).touch()
    RunFolder.open(tmp_path, "x", resume=True)
    assert checkpoint.exists()
    (tmp_path / REPORT).touch()
    with pytest.raises(RunError, match="holds a finished run"):
        RunFolder.open(tmp_path, "x", resume=True)
    assert not checkpoint.exists()


def test_a_damaged_config_cannot_be_resumed(tmp_path):
    (tmp_path / CONFIG).write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="config.yaml cannot be read .*; repeat the run in another folder"):
        RunFolder.open(tmp_path, "x", resume=True)


def test_an_interrupted_training_goes_on_with_its_own_options_alone(tmp_path):
    folder = RunFolder(tmp_path)
    folder.agree_to_train("data: digits\nseed: 1\n")
    folder.agree_to_train("data: digits\nseed: 2\n")  # nothing was begun
    assert (tmp_path / "train.yaml").read_text() == "data: digits\nseed: 2\n"
    folder.checkpoint("train").parent.mkdir()
    folder.checkpoint("train").touch()
    folder.agree_to_train("data: digits\nseed: 2\n")
    with pytest.raises(
        RunError, match=r"differs from the options given: data \(\"digits\" there, \"mine\" here\); finish"
    ):
        folder.agree_to_train("data: mine\nseed: 2\n")
    RunFolder(None).agree_to_train("x")


@pytest.mark.parametrize("text", ["{}", "[]", '{"full": {}, "pruned": {}}', "3"])
def test_json_that_is_no_summary_is_refused(text, tmp_path):
    (tmp_path / SUMMARY).write_text(text)
    with pytest.raises(RunError, match="is not the summary of a run; measure it again with tas measure --run"):
        read_summary(tmp_path)


def test_what_was_trained_again_is_not_resumed(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "x", resume=False)
    (folder.path / "model.safetensors").touch()
    RunFolder.open(tmp_path / "run", "x", resume=True)  # interrupted while it saved
    folder.agree_to_train("x")
    with pytest.raises(RunError, match="has been trained again by tas train, so that there is nothing to resume"):
        RunFolder.open(tmp_path / "run", "x", resume=True)


def test_an_error_in_a_file_names_the_file(tmp_path):
    (tmp_path / "architecture.json").write_text("[]")
    with pytest.raises(ArchitectureError, match="architecture.json: an architecture is"):
        read_as(tmp_path / "architecture.json", Architecture.from_json)
