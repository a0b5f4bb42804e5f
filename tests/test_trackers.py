"""The numbers of a run reach a tracker, and a tracker that is not there is refused before anything long."""

import pytest
import torch
from toys import TinyNet, tiny_source

import tas
from tas.record import Record
from tas.trackers import numbers, tracked

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    found = event_accumulator.EventAccumulator(str(folder / "tas"))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_every_new_row_goes_to_tensorboard_under_its_stage_at_steps_that_never_go_back(tmp_path):
    record = Record()
    record.add("train", epoch=0, loss=9.0)  # of an interrupted start, as the next
    record.add("search", part="halving", loss=2.5)
    with tracked(record, "tensorboard", folder=tmp_path, settings={"seed": 3, "train": {"epochs": 2, "how": "kd"}}):
        record.add("train", epoch=1, loss=0.5, seconds=2)
        record.add("search", part="halving", loss=1.5, architecture={"widths": {"conv1": 7}})
        record.add("search", part="halving", loss=1.25, architecture={"widths": {"conv1": 8}})
    record.add("train", epoch=2, loss=0.25)
    assert scalars(tmp_path) == {
        "train/epoch": [(2, 1.0)],
        "train/loss": [(2, 0.5)],
        "train/seconds": [(2, 2.0)],
        "search/halving/loss": [(3, 1.5), (4, 1.25)],
        "search/halving/architecture/widths/conv1": [(3, 7.0), (4, 8.0)],
    }
    assert len(record.rows) == 6


def test_numbers_are_named_by_their_path_and_text_is_left_out_or_kept():
    nest = {"search": {"loss": 1.5, "band": "paper", "betas": (0.5, 0.9)}, "seed": 1}
    assert numbers(nest) == {"search/loss": 1.5, "seed": 1}
    assert numbers(nest, text=True) == {
        "search/loss": 1.5, "search/band": "paper", "search/betas": "(0.5, 0.9)", "seed": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "not one that accelerate knows .did you mean tensorboard"),
        ("aim", "aim: its package is not installed"),
        ("tensorboard,aim", "aim: its package is not installed"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_written(name, message, tmp_path):
    with pytest.raises(tas.ConfigError, match=message), tracked(Record(), name, folder=tmp_path):
        pass
    with pytest.raises(tas.ConfigError, match=message):
        tas.compress(TinyNet(), tiny_source(), output=tmp_path / "run", tracker=name)
    assert not (tmp_path / "run").exists()


def test_the_whole_job_is_tracked(tmp_path):
    torch.manual_seed(0)
    config = tas.CompressConfig(
        search=tas.SearchConfig(epochs=1, start="trained", batch_size=8), train=tas.TrainConfig(epochs=2, batch_size=8)
    )
    tas.compress(TinyNet(), tiny_source(), config=config, output=tmp_path / "run", tracker="tensorboard")
    found = scalars(tmp_path / "run")
    assert [epoch for _, epoch in found["train/epoch"]] == [0, 1]
    (first, _), (second, _) = found["train/loss"]
    assert second == first + 1
    assert len(found["search/held_out_loss"]) == 1
