"""The whole job in Python: files, resumption, and what is promised about the result."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from token_nets import Attention, Tokens, TorchAttention
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import TinyNet, tiny_source

import tas
from tas.pipeline.compress import CompressConfig, short_search, short_train
from tas.pipeline.measure import evaluate

FILES = {
    "config.yaml",
    "record.jsonl",
    "graph.json",
    "architecture.json",
    "model.safetensors",
    "report.html",
    "report.md",
    "summary.json",
    "scores.json",
    "teacher.safetensors",  # where the run has trained it
}


def tiny_config(**options) -> CompressConfig:
    search = replace(short_search(), epochs=2, batch_size=16, architectures=8, halving_steps=10)
    train = replace(short_train(), epochs=3, batch_size=16)
    return CompressConfig(**{"search": search, "train": train, "teacher": train, **options})


def fresh() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    result = tas.compress(fresh(), tiny_source(), budget="50%", config=tiny_config(), output=folder, train_teacher=True)
    return folder, result


def test_a_run_folder_holds_exactly_the_promised_files(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_result_is_printed_as_both_networks_side_by_side(finished):
    folder, result = finished
    head, accuracy, macs, *rest = repr(result).splitlines()
    assert head.split() == ["CompressResult", "full", "pruned", "pruned", "/", "full"]
    assert accuracy.split()[:3] == ["accuracy", f"{result.full.accuracy:.2f}", "%"]
    share = f"{100 * result.pruned.macs / result.full.macs:.1f}"
    assert macs.split() == ["macs", f"{result.full.macs:,}", f"{result.pruned.macs:,}", share, "%"]
    assert rest[-1] == f"folder: {folder}"


def test_the_summary_has_the_promised_shape_and_true_numbers(finished):
    folder, result = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    for name in ("full", "pruned"):
        assert summary[name].keys() >= {"macs", "params", "accuracy", "latency_ms"}
    assert summary["seconds"].keys() == {"teacher", "search", "train", "total"}
    assert summary["budget"] == {"macs": "50%"}
    assert summary["seed"] == 0
    assert summary["pruned"]["macs"] == result.graph.macs(result.architecture) <= 0.5 * summary["full"]["macs"]
    assert summary["pruned"]["params"] == sum(parameter.numel() for parameter in result.model.parameters())
    assert summary["pruned"]["accuracy"] == evaluate(result.model, tiny_source())


def test_the_run_reloads_into_the_same_network(finished):
    folder, result = finished
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(tas.load(folder, TinyNet())(inputs), result.model(inputs))


def test_the_report_tells_the_result(finished):
    folder, result = finished
    text = (folder / "report.md").read_text()
    assert f"{result.full.macs:,}" in text
    assert f"{result.pruned.macs:,}" in text
    for width in result.graph.widths:
        assert f"| {width.name} | {width.size} | {result.architecture.widths[width.name]} |" in text
    for frozen in result.graph.frozen:
        assert frozen.reason in text


def test_the_same_seed_gives_the_same_architecture_and_weights(finished):
    _, result = finished
    again = tas.compress(fresh(), tiny_source(), budget="50%", config=tiny_config(), train_teacher=True)
    assert again.architecture == result.architecture
    assert again.pruned.accuracy == result.pruned.accuracy
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.model.state_dict().values(), result.model.state_dict().values(), strict=True)
    )
    assert again.folder is None


def test_the_model_given_is_not_changed(finished):
    model = fresh()
    tas.compress(model, tiny_source(), budget="60%", config=tiny_config())
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh().state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("stage", "epoch"), [("teacher", 1), ("search", 1), ("train", 2)])
def test_an_interrupted_run_resumes_in_every_stage_and_ends_the_same(finished, tmp_path, monkeypatch, stage, epoch):
    _, whole = finished
    add = tas.Record.add

    def interrupt(self, name, **values):
        add(self, name, **values)
        if name == stage and values.get("epoch") == epoch:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    options = {"budget": "50%", "config": tiny_config(), "output": folder, "train_teacher": True}
    monkeypatch.setattr(tas.Record, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tas.compress(fresh(), tiny_source(), **options)
    assert not (folder / "model.safetensors").exists()
    monkeypatch.setattr(tas.Record, "add", add)
    result = tas.compress(fresh(), tiny_source(), resume=True, **options)
    assert result.architecture == whole.architecture
    assert result.pruned.accuracy == whole.pruned.accuracy
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    )
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(tas.RunError, match="is in use; choose another folder, or resume"):
        tas.compress(fresh(), tiny_source(), config=tiny_config(), output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_written_for_a_budget_that_cannot_be_held(tmp_path):
    with pytest.raises(tas.BudgetError, match="the smallest has"):
        tas.compress(fresh(), tiny_source(), budget="0.01%", config=tiny_config(), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_needs_an_unfinished_run_with_the_same_options(tmp_path):
    with pytest.raises(tas.RunError, match="holds no run to resume"):
        tas.compress(fresh(), tiny_source(), config=tiny_config(), output=tmp_path / "run", resume=True)
    tas.compress(fresh(), tiny_source(), config=tiny_config(), output=tmp_path / "run")
    with pytest.raises(tas.RunError, match="holds a finished run"):
        tas.compress(fresh(), tiny_source(), config=tiny_config(), output=tmp_path / "run", resume=True)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(tas.RunError, match="differs from the options given"):
        tas.compress(fresh(), tiny_source(), budget="40%", config=tiny_config(), output=tmp_path / "run", resume=True)


def test_fresh_weights_are_the_papers_way(tmp_path):
    result = tas.compress(fresh(), tiny_source(), config=tiny_config(init="fresh"))
    assert result.graph.macs(result.architecture) <= 0.5 * result.graph.macs()


def test_one_seed_rules_all_stages():
    config = tiny_config(seed=7)
    assert (config.search.seed, config.train.seed, config.teacher.seed) == (7, 7, 7)


def test_other_tasks_bring_their_own_loss_and_metric(tmp_path):
    def loss(outputs, targets):
        return torch.nn.functional.mse_loss(outputs[:, 0], targets.float())

    def metric(outputs, targets):
        return -loss(outputs, targets)

    result = tas.compress(fresh(), tiny_source(), config=tiny_config(), loss=loss, metric=metric, output=tmp_path / "r")
    assert result.pruned.accuracy < 0
    text = (tmp_path / "r" / "report.md").read_text()
    assert re.search(r"\| metric \| -[0-9.]+ \| -[0-9.]+ \| [+-][0-9.]+ \|", text)  # its name, no percent
    assert "ccuracy" not in text.partition("seed:")[0]


def test_data_that_cannot_be_halved_is_refused_before_anything_is_written(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __len__(self):
            return 16

        def __iter__(self):
            return iter([(torch.rand(3, 8, 8), index % 4) for index in range(16)])

    loaders = tuple(torch.utils.data.DataLoader(Stream(), 4) for _ in range(2))
    with pytest.raises(tas.DataError, match="cannot be split; pass a map-style data set"):
        tas.compress(fresh(), loaders, config=tiny_config(), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({"loss": lambda outputs, targets: outputs.sum(1)}, tas.ConfigError, "must be a scalar tensor"),
     ({"loss": lambda outputs, targets: outputs.mean(), "model": TinyNet(1)}, tas.DataError, "label 3, the model only"),
     ({"model": TinyNet().double()}, tas.ModelError, "float32 images, the model.s weights are torch.float64"),
     ({"model": TinyNet().requires_grad_(False)}, tas.ModelError, "every parameter of TinyNet is frozen"),
     ({"model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))}, tas.BudgetError, "nothing in this")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        tas.compress(
            options.pop("model", TinyNet()), tiny_source(), config=tiny_config(), output=tmp_path / "run", **options
        )
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_are_told_of():
    model = fresh()
    model.stem.requires_grad_(False)
    model.head.bias.requires_grad_(False)  # which is never cut
    with pytest.warns(UserWarning, match=r"232 parameters are frozen .* and stay so"):
        tas.compress(model, tiny_source(), config=tiny_config())


def test_a_model_may_return_more_than_one_tensor():
    class Named(TinyNet):
        def forward(self, images):
            return {"scores": super().forward(images)}

    result = tas.compress(
        Named(),
        tiny_source(),
        config=tiny_config(),
        loss=lambda outputs, targets: torch.nn.functional.cross_entropy(outputs["scores"], targets),
        metric=lambda outputs, targets: 100 * (outputs["scores"].argmax(1) == targets).double().mean(),
    )
    assert result.pruned.accuracy >= 0


def test_hugging_face_models_answer_as_they_are_used_to(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=4
    )
    build = transformers.AutoModelForImageClassification.from_config
    result = tas.compress(
        build(config), tiny_source(), budget="50%", config=tiny_config(), output=tmp_path / "run", train_teacher=True
    )
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        again = tas.load(tmp_path / "run", build(config))(images)
        assert torch.equal(again.logits, result.model(images).logits)
    assert result.pruned.accuracy == evaluate(result.model, tiny_source())
    assert tas.export(result.model, tmp_path / "model.pt2", format="torch-export", data=tiny_source()).difference < 1e-5


def test_every_pixel_may_have_a_label():
    source = tiny_source()
    images, labels = source._train
    maps = labels[:, None, None].expand(-1, 8, 8).contiguous()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, maps), 16)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1))
    result = tas.compress(model, (loader, loader), config=tiny_config(), loss=torch.nn.functional.cross_entropy)
    assert 0 <= result.pruned.accuracy <= 100


def test_what_may_change_is_part_of_the_config_and_of_the_run(tmp_path):
    space = tas.SpaceConfig(choose="width", round_to=4, candidates={"blocks.2.*": [6, "25%"]})
    config = tiny_config(space=space, keep=["stem"])
    result = tas.compress(fresh(), tiny_source(), budget="80%", config=config, output=tmp_path / "run")
    assert result.architecture.depths == {"blocks": 3}
    sizes = result.architecture.widths
    assert sizes.keys() == {f"blocks.{block}.conv1" for block in range(3)}
    assert all(sizes[f"blocks.{block}.conv1"] in (4, 8) for block in range(2))
    assert sizes["blocks.2.conv1"] in (4, 6, 8)
    assert result.model.stem[0].weight.shape == (8, 3, 3, 3)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["keep"] == ["stem"]
    assert tas.SpaceConfig(**settings["space"] | {"ratios": tuple(settings["space"]["ratios"])}) == space


def test_patterns_in_one_text_are_the_same_patterns():
    assert tiny_config(keep="stem, *.conv1").keep == tiny_config(keep=["stem", "*.conv1"]).keep == ("stem", "*.conv1")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"keep": ["stm"]}, "no module of TinyNet is called 'stm' .did you mean stem"),
     ({"space": tas.SpaceConfig(candidates={"blcks": [1]})}, "no width and no depth is called 'blcks' .did you mean")],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(tas.ConfigError, match=message):
        tas.compress(fresh(), tiny_source(), config=tiny_config(**options), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def transformer() -> Tokens:
    torch.manual_seed(0)
    return Tokens(Attention(12, 3), TorchAttention(12, 4))


def test_heads_are_searched_like_channels_in_both_executions_and_reload(tmp_path):
    found = []
    for execution in ("compact", "dense"):
        folder = tmp_path / execution
        config = tiny_config(execution=execution)
        result = tas.compress(transformer(), tiny_source(classes=5), budget="50%", config=config, output=folder)
        assert result.pruned.macs <= 0.5 * result.full.macs
        images = torch.randn(2, 3, 8, 8)
        assert torch.equal(tas.load(folder, transformer())(images), result.model(images))
        found.append(result.architecture)
    assert {"blocks.0.attention.qkv", "blocks.1.attention.inner"} <= found[0].widths.keys()
    assert found[0] == found[1]


@pytest.mark.parametrize("way", ["halving", "alternation", "paper"])
@pytest.mark.parametrize("execution", ["compact", "dense"])
def test_free_residuals_go_through_the_whole_job(tmp_path, execution, way):
    from dataclasses import replace

    from free_nets import TwoStages

    from tas.options import with_options
    from tas.pipeline.comparison.methods import PAPER

    torch.manual_seed(0)
    config = tiny_config(residuals="free", execution=execution)
    if way == "halving":
        config = replace(
            config, search=replace(config.search, epochs=0, architectures=3, halving_steps=2, held_out_images=16)
        )
    elif way == "alternation":
        config = replace(config, search=replace(config.search, architectures=0))
    else:
        config = replace(with_options(config, PAPER, "paper"), init="fresh")
    source, example = tiny_source(classes=3, size=12), torch.zeros(1, 3, 12, 12)
    result = tas.compress(TwoStages(), source, budget="60%", config=config, output=tmp_path / "run")
    assert result.graph.macs(result.architecture) == result.pruned.macs <= 0.6 * result.full.macs
    assert result.pruned.params == result.graph.params(result.architecture)
    images = torch.randn(2, *example.shape[1:])
    assert torch.equal(tas.load(tmp_path / "run", TwoStages())(images), result.model(images))
    assert "second" in (tmp_path / "run" / "report.md").read_text()


def test_data_of_whole_numbers_that_an_embedding_reads_needs_no_example():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.hidden, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, tokens):
            x = self.words(tokens)
            return self.head((x + self.hidden(x.relu())).mean(1))

    torch.manual_seed(0)
    model, tokens, labels = Words(), torch.randint(20, (64, 6)), torch.arange(64) % 4
    data = tuple(DataLoader(TensorDataset(tokens, labels), 16, shuffle=shuffle) for shuffle in (True, False))
    train = replace(short_train(), epochs=1, transfer="hints")
    result = tas.compress(model, data, budget="50%", config=tiny_config(train=train))
    assert 0 < result.pruned.macs <= 0.5 * result.full.macs
    assert result.architecture.widths["words"] < 16
