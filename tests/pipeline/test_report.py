"""The report says what the files of the run say."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import PROFILE, SUMMARY, write_run
from torch import nn
from toys import TinyNet

import tas
from tas.latency import Latency
from tas.pipeline.report import labels, result_table
from tas.pipeline.report.rows import layer_rows
from tas.pipeline.report.video import thinned

LIMIT = 6 * 2**20  # bytes of a page


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


def markdown(folder) -> str:
    return tas.report(folder).with_suffix(".md").read_text()


def body(page) -> str:
    """The page without plotly.js."""
    return page.read_text().partition("</main>")[0]


def figures(page) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', body(page), re.S)
    return [json.loads(text) for text in found]


def videos(page) -> list[dict]:
    return [figure for figure in figures(page) if "frames" in figure]


def test_the_result_table_compares_both_models():
    lines = result_table(SUMMARY).splitlines()
    assert lines[2] == "| accuracy | 90.00 % | 89.25 % | -0.75 points |"
    assert lines[3] == "| macs | 1,000 | 480 | 48.0 % |"
    assert lines[5] == "| latency | 2.000 ms | 1.000 ms | 50.0 % |"


def test_a_metric_of_the_users_has_its_name_and_no_percent(run):
    profile = {**PROFILE, "accuracy": 0.8512, "metric": "mAP50"}
    (run / "summary.json").write_text(json.dumps({**SUMMARY, "full": profile, "pruned": {**profile, "accuracy": 0.84}}))
    page = body(tas.report(run))
    assert ", mAP50 0.84 instead of 0.8512</h1>" in page
    assert ">mAP50<" in page
    assert ">-0.0112<" in page
    assert "mAP50 0.8512 before, 0.84 after." in (run / "report.md").read_text()


def test_a_missing_accuracy_leaves_its_row_out(run):
    without = {**SUMMARY, "full": {**PROFILE, "accuracy": None}}
    assert "accuracy" not in result_table(without)
    (run / "summary.json").write_text(json.dumps(without))
    assert ">accuracy<" not in body(tas.report(run))


def test_the_text_has_sizes_dropped_blocks_frozen_axes_search_and_origin(run):
    text = markdown(run)
    assert "Pruned to 48.0 % of the multiply-adds" in text
    assert "Budget: 50% of macs, 2500 params; held." in text
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
    text = markdown(run)
    assert "Pruned to" in text
    assert "## Search" not in text
    assert "## Architecture" not in text
    assert figures(run / "report.html") == []


def test_no_run_and_a_damaged_one_are_errors(tmp_path):
    with pytest.raises(tas.RunError, match="holds no run .* give the output folder of a run"):
        tas.report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(tas.RunError, match="is not JSON"):
        tas.report(tmp_path)


def test_an_architecture_of_another_model_in_the_record_is_an_error(tmp_path):
    run = write_run(tmp_path)
    tas.Record(run / "record.jsonl").add("search", epoch=7, architecture={"widths": {"other": 3}, "depths": {}})
    with pytest.raises(tas.ArchitectureError, match="does not belong to this graph"):
        tas.report(run)


def test_the_page_tells_the_result_the_sizes_the_reasons_and_the_origin(tmp_path):
    run = write_run(tmp_path / "r")
    page = tas.report(run)
    assert page == run / "report.html"
    text = body(page)
    sentence = "mine.py:build on digits: 48.0 % of the multiply-adds and 40.0 % of the parameters, accuracy 89.25 %"
    assert f"<h1>{sentence} instead of 90.00 %</h1>" in text
    for words in ("Budget: 50% of macs, 2500 params; held.", "2.000 ms", "Dropped blocks: blocks.1, blocks.2",
                  "output of the model", "head.weight[0]", "Seed 3", "torch 2.11", "data: digits",
                  f"tas compress --config {run}/config.yaml"):  # fmt: skip
        assert words in text, words
    titles = re.findall("<h3>(.*?)</h3>", text)
    assert len(titles) == len(set(titles)) == len(figures(page)) == 7
    assert not re.search(r'(src|href)="http', text)  # opens offline


def test_the_command_that_repeats_a_run_can_be_pasted_where_the_run_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = html.unescape(body(tas.report(write_run(Path("my runs") / "r"))))
    assert "tas compress --config 'my runs/r/config.yaml' --output runs/again" in text


def test_latencies_are_told_of_every_batch_size_and_the_prediction_of_its_own(tmp_path):
    run, graph = write_run(tmp_path / "run"), tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    known = Latency((), 2_000_000, "a clock", 1, 4, 2.0, 0.0, runtime="onnxruntime")
    (run / "graph.json").write_text(replace(graph, latency=known).to_json())
    summary = {**SUMMARY, "budget": {"latency": 0.6}}
    for name, factor in (("full", 1.0), ("pruned", 0.5)):
        one = {"batch_size": 1, "latency_ms": 2.0 * factor, "latency_spread_ms": 0.1}
        many = {"batch_size": 8, "latency_ms": 8.0 * factor, "latency_spread_ms": 7.0}
        summary[name] = {**SUMMARY[name], **one, "predicted_latency_ms": 3.0 * factor, "timings": [one, many]}
    (run / "summary.json").write_text(json.dumps(summary))
    page = tas.report(run)
    text = body(page)
    assert "and 40.0 % of the parameters, 50.0 % of the latency, accuracy 89.25 %" in text
    assert "Budget: 60% of latency" in text
    told = [re.findall("<td.*?>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", text) if "latency" in row]
    assert [[cell.replace("&nbsp;", " ") for cell in cells] for cells in told] == [
        ["predicted latency, ONNX Runtime, batch of 4", "3.000 ms", "1.500 ms", "50.0 %"],
        ["latency, batch of 1", "2.000 ms", "1.000 ms", "50.0 %"],
        ["spread of latency, batch of 1", "0.100 ms", "0.100 ms", ""],
        ["latency, batch of 8", "8.000 ms", "4.000 ms", "no gain: 50.0 %, within the spread of 7.000 ms"],
        ["spread of latency, batch of 8", "7.000 ms", "7.000 ms", ""],
    ]
    assert "no gain in latency" not in text


def test_the_size_of_the_weights_file_is_told_and_that_of_the_full_model_is_what_saving_it_takes(tmp_path):
    model, run = TinyNet(), write_run(tmp_path / "run")
    graph = tas.Graph.from_json((run / "graph.json").read_text())
    tas.save(tmp_path / "full", model, graph, graph.full)
    chosen = tas.Architecture.from_json((run / "architecture.json").read_text())
    tas.save(run, tas.derive(model, graph, chosen), graph, chosen)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "full", run)]
    row = re.search("file of the weights.*?</tr>", body(tas.report(run)))
    assert row is not None
    told = [float(cell) for cell in re.findall(r"([\d.]+) MB", row[0])]
    assert told[1] == round(sizes[1] / 1e6, 2)
    assert told[0] == pytest.approx(sizes[0] / 1e6, abs=0.011)  # the header of a smaller model names fewer tensors


def test_every_epoch_is_a_frame_and_its_bars_are_the_sizes_of_that_architecture(tmp_path):
    run = write_run(tmp_path, epochs=7)
    graph = tas.Graph.from_json((run / "graph.json").read_text())
    (video,) = videos(tas.report(run))
    rows = tas.Record.read(run / "record.jsonl").epochs("search")
    assert [frame["name"] for frame in video["frames"]] == [str(row["epoch"] + 1) for row in rows]
    assert len(video["layout"]["sliders"][0]["steps"]) == 7
    convolutions = ["stem.0", *(f"blocks.{block}.conv{place}" for block in range(3) for place in (1, 2)), "head"]
    assert [about[0] for about in video["data"][1]["customdata"]] == convolutions
    for row, frame in zip(rows, video["frames"], strict=True):
        widths, kept = row["architecture"]["widths"], row["architecture"]["depths"]["blocks"]
        for name, size, dropped in zip(convolutions, frame["data"][0]["x"], frame["data"][1]["x"], strict=True):
            is_dropped = name.startswith("blocks") and int(name.split(".")[1]) >= kept
            width = name if name.endswith("conv1") else "stem.0"  # the stream is shared
            assert size == (0 if is_dropped else 4 if name == "head" else widths[width])
            assert dropped == (8 if is_dropped else 0)
    assert graph.full.widths["stem.0"] == 8
    assert video["data"][1]["x"] == video["frames"][-1]["data"][0]["x"]  # without playing, the last epoch is seen


def test_a_row_is_what_a_layer_makes_even_where_torch_transposes_its_weight():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3))
    rows = layer_rows(tas.trace(net, torch.zeros(1, 3, 8, 8)))
    assert [(row.name, row.full) for row in rows] == [("0", 6), ("1", 5), ("3", 4)]


def test_a_long_search_keeps_at_most_120_frames_the_first_and_the_last_among_them():
    kept = thinned(list(range(600)))
    assert len(kept) == len(set(kept)) == 120
    assert (kept[0], kept[-1]) == (0, 599)
    assert thinned([1, 2, 3]) == [1, 2, 3]


def test_a_deep_net_and_a_long_search_stay_under_6_mb(tmp_path):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(120)])

        def forward(self, images):
            return self.blocks(images)

    graph = tas.trace(Deep(), torch.zeros(1, 4, 2, 2))
    page = tas.report(write_run(tmp_path, epochs=600, graph=graph, finished=False))
    assert page.stat().st_size <= LIMIT
    (video,) = videos(page)
    assert len(video["frames"]) == 120
    assert video["layout"]["height"] <= 1100  # fits on a screen
    assert len(video["layout"]["yaxis"]["ticktext"]) * 13 <= video["layout"]["height"]  # labels do not overlap


def test_what_users_name_cannot_become_html(tmp_path):
    evil = "<img src=x onerror=alert(1)></script>"
    run = write_run(tmp_path / "<b>run")
    settings = f"model: '{evil}'\ndata: digits\nteacher: {{}}\n"
    (run / "config.yaml").write_text(settings)
    graph = (run / "graph.json").read_text().replace("output of the model", evil).replace("stem.0", "<i>stem")
    (run / "graph.json").write_text(graph)
    for name in ("record.jsonl", "architecture.json"):
        (run / name).write_text((run / name).read_text().replace("stem.0", "<i>stem"))
    page = tas.report(run)
    text = body(page)
    assert "&lt;img src=x" in text
    for tag in ("<img", "<i>stem", "<b>run", "onerror=alert(1)></script>"):
        assert tag not in text
    assert "&lt;i&gt;stem" in videos(page)[0]["layout"]["yaxis"]["ticktext"]  # plotly reads its texts as HTML


def test_an_interrupted_run_is_told_as_far_as_it_is(tmp_path):
    run = write_run(tmp_path, epochs=4, finished=False)
    with (run / "record.jsonl").open("a") as file:
        file.write('{"stage": "search", "epo')  # being written, or cut by a kill
    before = (run / "record.jsonl").read_bytes()
    page = tas.report(run)
    assert "This run is not finished; below is what there is so far: search 4 of 9 epochs." in body(page)
    assert "Seed 3" in body(page)
    assert len(videos(page)[0]["frames"]) == 4
    assert "# Not finished\n\nSo far: search 4 of 9 epochs." in (run / "report.md").read_text()
    assert (run / "record.jsonl").read_bytes() == before


def test_a_training_alone_is_not_called_unfinished(tmp_path):
    (tmp_path / "config.yaml").write_text("model: mine.py:build\ndata: digits\ntrain: {epochs: 2}\n")
    for epoch in range(2):
        tas.Record(tmp_path / "record.jsonl").add("train", epoch=epoch, seconds=1.0, loss=1.0)
    assert "This run is not finished" in tas.report(tmp_path).read_text()
    (tmp_path / "model.safetensors").touch()
    text = tas.report(tmp_path).read_text()
    assert "mine.py:build on digits: trained alone" in text
    assert "This run is trained alone; below is what there is so far: train 2 of 2 epochs." in text
    assert "# Trained alone" in (tmp_path / "report.md").read_text()


def test_a_run_that_has_only_begun_is_told_too(tmp_path):
    (tmp_path / "config.yaml").write_text("data: [")
    assert "no epoch yet" in body(tas.report(tmp_path))


def test_several_runs_stand_side_by_side(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", epochs=2, finished=False)]
    page = tas.report(*runs)
    assert page == tmp_path / "report.html"
    text = body(page)
    assert "<h1>2 runs side by side</h1>" in text
    assert "1,000 → 480 (48.0&nbsp;%)" in text
    assert "not finished: search 2 of 9 epochs" in text
    assert [len(video["frames"]) for video in videos(page)] == [5, 2]
    names = {trace.get("name") for figure in figures(page) for trace in figure["data"]}
    assert {"a: held-out half", "b: held-out half", "a", "b"} <= names
    assert not (tmp_path / "report.md").exists()
    assert tas.report(*runs, output=tmp_path / "both") == tmp_path / "both" / "report.html"
    assert page.stat().st_size <= LIMIT


def test_an_output_that_is_a_file_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(tas.RunError, match="is a file; give a folder for the report"):
        tas.report(run, output=run / "summary.json")


def test_runs_are_told_apart_by_as_much_of_their_path_as_needed(tmp_path):
    assert labels([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert labels([tmp_path / "one", tmp_path / "two"]) == ["one", "two"]


def test_rounds_are_told_and_shown(tmp_path):
    folder = write_run(tmp_path / "run", epochs=2)
    graph = tas.Graph.from_json((folder / "graph.json").read_text())
    space = tas.SearchSpace.of(graph)
    record = tas.Record(folder / "record.jsonl")
    record.add("search", part="saliency", seconds=1.0, losses={})

    def add(number, found, losses):
        record.add(
            "search", part="halving", round=number, steps=60 * (number + 1), images=128, seconds=1.0, loss=min(losses),
            losses=losses, macs=graph.macs(found), architecture=found.to_dict(),
        )  # fmt: skip

    add(0, space.smallest, [7.0, 8.0, 9.0, 9.5])
    add(0, space.largest, [3.0, 1.25, 2.0, 4.0])  # done again after an interruption
    add(1, space.smallest, [1.0, 0.5])
    text = markdown(folder)
    assert f"| 1 | 60 | 128 | 4 | 2.500 | 1.250 | {graph.macs():,} | blocks 3 |" in text
    assert f"| 2 | 120 | 128 | 2 | 0.750 | 0.500 | {graph.macs(space.smallest):,} | blocks 1 |" in text
    assert "7.000" not in text
    page = (folder / "report.html").read_text()
    assert "after every epoch of the search and after every round of successive halving" in page
    assert "round 2 of 2: " in page
    assert "epoch 2 of 2: " in page
    assert "held-out loss in successive halving" in page


def test_a_search_without_epochs_has_no_empty_charts(tmp_path):
    folder = write_run(tmp_path / "run", epochs=0)
    (folder / "config.yaml").write_text("seed: 3\nbudget: {macs: 50%}\nsearch: {epochs: 0}")
    assert "cost in the search" not in tas.report(folder).read_text()


def test_an_architecture_that_does_not_hold_the_budget_is_told(run):
    graph = tas.Graph.from_json((run / "graph.json").read_text())
    (run / "architecture.json").write_text(graph.full.to_json())
    assert "Budget: 50% of macs, 2500 params; not held by this architecture." in markdown(run)
    assert "2500 params; not held by this architecture.</p>" in body(run / "report.html")
    (run / "architecture.json").unlink()  # nothing to judge by
    assert "Budget: 50% of macs, 2500 params." in markdown(run)


def test_a_quality_of_nothing_has_no_share_but_a_report(run):
    nothing = {name: {**SUMMARY[name], "accuracy": 0.0} for name in ("full", "pruned")}
    (run / "summary.json").write_text(json.dumps({**SUMMARY, **nothing}))
    assert "| accuracy | 0.00 % | 0.00 % | +0.00 points |" in markdown(run)
