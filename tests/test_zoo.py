"""The benchmark of the zoo, on models small enough for every run of the tests; `make zoo` runs the whole list."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from nets import Plain, images, perturbed
from scripts import FOLDER, load_script
from torch import nn

from tas.graph import Frozen
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace

zoo = load_script("zoo")

SMALL = (
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
    "timm:ghostnet_050",
    "timm:mobilevit_xxs",
    "timm:starnet_s050",
    "timm:test_convnext",
    "timm:test_efficientnet",
    "timm:test_mambaout",
    "timm:test_nfnet",
    "timm:test_resnet",
    "timm:test_vit",
    "tasks:detr",
    "tasks:videomae",
)
ROW = zoo.Row(
    "timm:one",
    "passed",
    size=64,
    seconds=1.25,
    peak_mb=1234,
    macs=1000,
    widths=3,
    depths=1,
    frozen=2,
    reasons=(zoo.Reason("output of the model", 1, 0.25), zoo.Reason("no rule | at all", 1, 0.5)),
    open_share=0.75,
    error=2e-7,
    architectures=4,
)
REFUSED = zoo.Row("timm:two", "refused", "torch.export cannot capture Two", size=64)
FAILED = zoo.Row("timm:three", "FAILED", "the graph says 1 macs,\ntorch counts 2", size=64)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_of_the_zoo_passes(name):
    row = zoo.check(name, 64)
    assert (row.status, row.message) == ("passed", "")
    assert row.architectures == 1 + zoo.RANDOM_ARCHITECTURES
    assert min(row.widths, row.seconds, row.peak_mb, row.macs) > 0


def test_a_model_passes_in_processes_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # the processes import the script, too
    row = zoo.run_one("timm:test_resnet", size=64, seconds=120)
    assert (row.status, row.message, row.size) == ("passed", "", 64)


def test_a_process_that_dies_or_hangs_costs_one_row(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(zoo.ProcessError, match="_exit: the process died, exit code 3"):
        zoo.apart(zoo.os._exit, 3, seconds=120)
    with pytest.raises(zoo.ProcessError, match="sleep: no result after 1 seconds"):
        zoo.apart(zoo.time.sleep, 100, seconds=1)
    with pytest.raises(zoo.ProcessError, match="load_model: ModelError: timm has no model 'nothing'"):
        zoo.apart(zoo.load_model, "timm:nothing", seconds=120)


def test_the_list_has_all_classifiers_and_no_name_twice():
    names = zoo.all_names()
    assert len(names) == len(set(names))
    assert sum(name.startswith("torchvision:") for name in names) >= 80
    assert sum(name.startswith("timm:") for name in names) >= 40


def test_an_exception_that_is_not_ours_is_a_failure_and_a_refusal_is_none(monkeypatch):
    class DependsOnValues(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    monkeypatch.setattr(zoo, "load_model", lambda name: DependsOnValues(3, 3, 1))
    row = zoo.check("torchvision:odd", 8)
    assert row.status == "refused"
    assert "cannot capture DependsOnValues" in row.message

    monkeypatch.setattr("tas.derive", None, raising=False)
    monkeypatch.setattr(zoo, "load_model", lambda name: Plain())
    row = zoo.check("torchvision:odd", 8)
    assert (row.status, row.message) == ("FAILED", "TypeError: 'NoneType' object is not callable")


def test_a_derived_model_that_differs_and_a_wrong_count_are_failures(monkeypatch):
    def wrong(model, graph, architecture):
        small = derive(model, graph, architecture)
        small.head[2].bias.add_(1)
        return small

    monkeypatch.setattr("tas.derive", wrong, raising=False)
    monkeypatch.setattr("tas.pipeline.measure.count_macs", lambda model, example: 7)
    monkeypatch.setattr(zoo, "load_model", lambda name: Plain())
    row = zoo.check("torchvision:odd", 8)
    assert row.status == "FAILED"
    macs = 64 * 9 * (3 * 8 + 8 * 12) + 12 * 5
    assert f"the full model: the graph says {macs:,} macs, torch counts 7" in row.message
    assert "the smallest architecture: the derived model differs from the masked one by" in row.message


def test_a_supernet_that_stays_at_one_size_or_learns_nothing_is_a_failure(monkeypatch):
    model, graph = perturbed(Plain()), trace(Plain(), images())
    architecture = SearchSpace.of(graph).smallest
    derived = {architecture: zoo._outputs(derive(model, graph, architecture), images())}
    assert zoo._supernet_failures(model, graph, derived, images()) == []
    monkeypatch.setattr("tas.Supernet.fixed", lambda supernet, architecture: nullcontext(supernet), raising=False)
    monkeypatch.setattr("tas.Supernet.draw", lambda supernet, temperature: None, raising=False)
    stays, learns_nothing = zoo._supernet_failures(model, graph, derived, images())
    assert stays.startswith("architecture 0: the supernet differs from the derived model by")
    assert learns_nothing == "a step of the search gives the logits no finite gradient"


def test_reasons_are_grouped_without_numbers_and_paths_and_weighed_by_macs():
    graph = trace(Plain(), images())
    frozen = (
        Frozen("second.0.weight[0]", "differs from the masked one by 1.2e-03", "second"),
        Frozen("second.1.weight[0]", "differs from the masked one by 0.5", "second"),
        Frozen("head.2.weight[0]", "is combined with stages.1.block.gamma, which differs", "head"),
        Frozen("never.weight[0]", "not in the captured graph", "never"),
    )
    macs = [64 * 9 * 8 * 12, 12 * 5, 0]
    assert zoo.group_reasons(replace(graph, frozen=frozen)) == (
        zoo.Reason("differs from the masked one by N", 2, round(macs[0] / graph.macs(), 4)),
        zoo.Reason("is combined with *.gamma, which differs", 1, round(macs[1] / graph.macs(), 4)),
        zoo.Reason("not in the captured graph", 1, 0.0),
    )


def test_perturbed_weights_leave_no_channel_without_effect():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(8))
    nn.init.zeros_(model[1].weight)
    zoo.perturb_(model, torch.Generator().manual_seed(0))
    assert all(bool((parameter != 0).all()) for parameter in model.parameters())
    assert float(model[1].weight.detach().abs().min()) >= 0.5


def test_an_interrupted_run_goes_on_with_what_is_missing_or_failed(tmp_path, monkeypatch):
    asked = []

    def run_one(name, **options):
        asked.append(name)
        return zoo.Row(name, "FAILED" if name == "timm:three" else "passed")

    monkeypatch.setattr(zoo, "run_one", run_one)
    results, names = tmp_path / "folder" / "zoo.jsonl", ["timm:one", "timm:three", "timm:four"]
    options = {"size": None, "seconds": 1.0}
    zoo.run_all(names[:2], results, resume=False, **options)
    with results.open("a") as file:
        file.write('{"name": "timm:fo')  # cut off
    rows = zoo.run_all(names, results, resume=True, **options)
    assert asked == ["timm:one", "timm:three", "timm:three", "timm:four"]
    assert [row.name for row in rows] == names
    assert list(zoo.read_rows(results).values()) == [rows[0], rows[1], rows[2]]
    zoo.run_all(names, results, resume=False, **options)
    assert asked[4:] == names


def test_rows_survive_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "run_one", lambda name, **options: ROW)
    zoo.run_all([ROW.name], tmp_path / "zoo.jsonl", resume=False, size=None, seconds=1.0)
    assert zoo.read_rows(tmp_path / "zoo.jsonl") == {ROW.name: ROW}


def test_the_page_has_every_model_every_reason_and_every_message():
    page = zoo.markdown([ROW, REFUSED, FAILED], "python benchmarks/zoo.py")
    assert "3 models: 1 passed, 1 refused, 1 failed. Macs open: median 75.0 %, at least 75.0 %." in page
    assert "| timm:one | 64 | passed | 1.2 | 1,234 | 3 | 1 | 2 | 75.0 % | 2e-07 |" in page
    assert "| timm:two | 64 | refused |  |  |  |  |  |  |  |" in page
    assert "| no rule / at all | 1 | 50.0 % | timm:one |" in page
    assert "* timm:three FAILED: the graph says 1 macs, torch counts 2" in page
    assert "`python benchmarks/zoo.py`" in page


def test_only_failures_change_the_exit_status(tmp_path, monkeypatch, capsys):
    rows = {"torchvision:resnet18": ROW, "torchvision:resnet34": REFUSED, "torchvision:alexnet": FAILED}
    monkeypatch.setattr(zoo, "run_all", lambda names, *_, **options: [rows[name] for name in names])
    page = tmp_path / "zoo.md"
    assert zoo.main(["--only", "*:resnet18", "--only", "*:resnet34", "--write", str(page)]) == 0
    assert "'*:resnet18'" in page.read_text()
    assert zoo.main(["--only", "torchvision:alexnet"]) == 1
    assert "torch counts 2" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        zoo.main(["--only", "nothing"])
    assert "no model of the list is called like nothing" in capsys.readouterr().err
