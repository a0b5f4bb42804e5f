"""README and docs/ keep what they promise: commands parse, Python examples run, links lead somewhere."""

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from recording import record_calls
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import tiny_source

import tas
from tas.cli import COMMANDS, EXAMPLES, main
from tas.data import TensorSource
from tas.pipeline.comparison.methods import read_methods, read_transfer, words_of
from tas.pipeline.comparison.plan import DEFAULT_METHODS, DEFAULT_TRANSFERS
from tas.pipeline.compress import CompressConfig
from tas.pipeline.rivals import RivalConfig

HOME = Path(__file__).parents[1]
PAGES = {str(path.relative_to(HOME)): path.read_text() for path in (HOME / "README.md", *HOME.glob("docs/*.md"))}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def lines_of_code(text: str) -> Iterator[str]:
    """Lines of fenced and indented blocks, and code spans in prose; lines that end with a backslash go on."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("$ ")
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands(text: str) -> list[list[str]]:
    """Words of every line that calls `tas`, without those in which COMMAND or … stands for one."""
    lines = [line for line in lines_of_code(text) if line.startswith("tas ")]
    found = [[word for word in shlex.split(line, comments=True)[1:] if word != "…"] for line in lines]
    return [words for words in found if words and not words[0].isupper()]


def parse(words: list[str], monkeypatch) -> None:
    """Let the real parser take the words; files of options are there, but empty."""
    for place, word in enumerate(words):
        if word == "--config":
            file = Path(words[place + 1])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text((HOME / file).read_text() if (HOME / file).is_file() else "{}")
    assert words[0] in COMMANDS, f"there is no command tas {words[0]}"
    if len(words) == 1 or words[1] in ("--help", "--print_config"):
        return  # its name alone, in prose
    called = record_calls(words[0], monkeypatch)
    assert main(words) == 0, words
    assert len(called) == 1
    if words[0] == "compare":  # its parser takes any text for these
        for method in read_methods(called[0].get("methods", DEFAULT_METHODS)):
            assert method.job(CompressConfig(), 0) if method.is_searched else method.rival(RivalConfig(), 0)
        for transfer in words_of(called[0].get("transfers", DEFAULT_TRANSFERS)):
            read_transfer(transfer)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_parses(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands(PAGES[page]):
        parse(words, monkeypatch)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_parse(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in EXAMPLES[name]:
        assert not set(line) & set(";|&$<>"), f"{line}: a shell reads that as something else"
        parse(shlex.split(line)[1:], monkeypatch)


def test_no_command_line_holds_a_pattern_of_the_shell():
    lines = [line for text in PAGES.values() for line in lines_of_code(text) if line.startswith("tas ")]
    for line in [*lines, *(line for examples in EXAMPLES.values() for line in examples)]:
        words = shlex.split(line, comments=True, posix=False)
        assert not [word for word in words if set(word) & set("[*?") and not set(word) & set("\"'")], line


def test_every_command_is_shown_with_its_options():
    shown = [words for text in PAGES.values() for words in commands(text)]
    for name in COMMANDS:
        assert any(words[0] == name and len(words) > 1 for words in shown), f"no page shows an example of tas {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for place, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", PAGES[page]):
        file = (HOME / page).parent / place if place else HOME / page
        assert file.exists(), f"{page}: {place}"
        titles = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in
                  re.findall(r"^#+ (.*)$", file.read_text(), re.M)] if anchor else []  # fmt: skip
        assert not anchor or anchor in titles, f"{page}: {place}#{anchor}"


def test_the_layers_of_the_design_are_those_of_the_contract():
    contract = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    section = PAGES["docs/design.md"].split("## Layers")[1].split("## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ")]
    for line, layer in zip(lines, contract, strict=True):
        assert {name.split(".")[-1] for name in layer.split(" | ")} <= set(re.findall(r"\w+", line)), layer


def test_pages_are_short():
    assert len(PAGES["README.md"].splitlines()) < 150
    for page, text in PAGES.items():
        assert page in ("README.md", "docs/design.md", "docs/zoo.md") or len(text.splitlines()) <= 120, page


class Block(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(inputs))))))


class ReadersNet(nn.Module):
    """The reader's model: a ResNet by its names, for images of any size, that trains in a second."""

    def __init__(self, num_classes: int = 10, blocks: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(*[Block(8, 16) for _ in range(blocks)])
        self.layer4 = nn.Sequential(Block(8, 16), Block(8, 64))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer4(self.layer1(torch.relu(self.bn1(self.conv1(images))))).mean((2, 3)))


@pytest.fixture
def reader(tmp_path, monkeypatch) -> dict[str, object]:
    """What the reader of a page has: names in Python, files in the current folder, downloads that are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where times of layers are kept
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    source, model = tiny_source(), ReadersNet()
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: ReadersNet())
    monkeypatch.setattr(tas.data, "load", lambda *_, **__: source)
    monkeypatch.setattr(tas.models, "load", _load)
    monkeypatch.setattr(tas, "LatencyConfig", partial(tas.LatencyConfig, seconds=0.001, models=3))
    given = CompressConfig()  # what a page leaves to the defaults is short
    search = replace(given.search, architectures=4, halving_steps=4, halving_images=16, held_out_images=16)
    search = replace(search, batch_size=16)  # fewer passes over these few images than a comparison trains
    short = partial(CompressConfig, search=search, train=replace(given.train, epochs=2))
    monkeypatch.setattr(tas, "CompressConfig", short)
    monkeypatch.setattr(tas, "compress", partial(tas.compress, config=short()))
    save_file(model.state_dict(), "teacher.safetensors")
    train_loader, test_loader = _loaders(source)
    names = {"model": model, "fresh_model": ReadersNet(), "data": source, "example": torch.zeros(1, 3, 8, 8)}
    return {**names, "train_loader": train_loader, "test_loader": test_loader, "source": source}


_named_model = tas.models.load


def _load(name: str, **options) -> nn.Module:
    """Models by name; those of timm and torchvision are small, and deep enough for any budget of latency."""
    return ReadersNet(blocks=8) if name.startswith(("timm:", "torchvision:")) else _named_model(name, **options)


def _loaders(source: TensorSource) -> list[DataLoader]:
    parts = [list(part) for part in (source.train_batches(64), source.test_batches(64))]
    sets = [TensorDataset(*(torch.cat(column) for column in zip(*part, strict=True))) for part in parts]
    return [DataLoader(sets[0], batch_size=64, shuffle=True), DataLoader(sets[1], batch_size=64)]


def _weights_of_a_file(source: TensorSource, patch: pytest.MonkeyPatch) -> None:
    """The state dict of the network in my_model.py."""
    from my_model import build  # pyright: ignore[reportMissingImports]

    torch.save(build(num_classes=4).state_dict(), "my_weights.pt")


def _run_of_digits(source: TensorSource, patch: pytest.MonkeyPatch) -> None:
    """A finished run of the smallest ResNet-20."""
    full = _named_model("cifar_resnet:20")
    graph = tas.trace(full, torch.zeros(1, 3, 8, 8))
    smallest = tas.SearchSpace.of(graph).smallest
    small = tas.train(tas.derive(full, graph, smallest), source, config=tas.TrainConfig(epochs=40, batch_size=16))
    tas.save("runs/digits", small, graph, smallest)
    tas.Record(Path("runs/digits/record.jsonl")).add("start", seed=1, versions={})


def _masks(source: TensorSource, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """Loaders of a segmentation, with a class for every pixel, and a small SegFormer that needs no download."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    options = {"hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 2, 4, 8], "decoder_hidden_size": 64}
    patch.setattr(SegformerForSemanticSegmentation, "from_pretrained", lambda _: SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=3, depths=[1, 1, 2, 1], **options)))  # fmt: skip
    images = torch.rand(32, 3, 32, 32)
    masks = images.argmax(1)
    masks[:, :4] = 255
    loader = DataLoader(TensorDataset(images, masks), batch_size=8)
    return {"train_loader": loader, "test_loader": loader}


def _canvases(source: TensorSource, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """Loaders of a detector: noise, with one object of ten in every image."""
    pytest.importorskip("ultralytics", reason="needs ultralytics (AGPL-3.0), which is not among the extras")
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).expand(32, 1, 4)
    targets = torch.cat([torch.arange(32.0).remainder(10).view(32, 1, 1), boxes], 2)
    loader = DataLoader(TensorDataset(torch.rand(32, 3, 64, 64), targets), batch_size=16)
    return {"train_loader": loader, "test_loader": loader}


class Map(nn.Module):
    """A backbone that gives one map at a stride of 32."""

    def __init__(self, out_channels: int | list[int]):
        super().__init__()
        self.conv, self.norm, self.out_channels = nn.Conv2d(3, 8, 32, 32), nn.BatchNorm2d(8), out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": torch.relu(self.norm(self.conv(images)))}


def _boxes(source: TensorSource, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """Loaders with one box in every image, and detectors of torchvision that have hardly a layer."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.ssd import SSD
    from torchvision.ops import MultiScaleRoIAlign

    def ssd(num_classes, **_):
        return SSD(Map([8]), DefaultBoxGenerator([[2]]), (320, 320), num_classes)

    def faster(num_classes, weights_backbone, **sizes):
        return detection.FasterRCNN(
            Map(8), rpn_anchor_generator=AnchorGenerator(((128,),), ((1.0,),)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 2, 2), box_head=TwoMLPHead(32, 16),
            box_predictor=FastRCNNPredictor(16, num_classes), **sizes,
        )  # fmt: skip

    patch.setattr(detection, "ssdlite320_mobilenet_v3_large", ssd)
    patch.setattr(detection, "fasterrcnn_mobilenet_v3_large_320_fpn", faster)
    boxes = torch.tensor([[100.0, 90, 220, 210], [-1, -1, -1, -1]]).expand(16, 2, 4)
    labels = torch.stack([torch.arange(16.0).remainder(4) + 1, torch.full((16,), -1.0)], 1)
    loader = DataLoader(TensorDataset(torch.rand(16, 3, 320, 320), torch.cat([labels[..., None], boxes], 2)), 8)
    return {"train_loader": loader, "test_loader": loader}


PREPARE = {  # what a page takes for granted
    "docs/detectors.md": _canvases,
    "docs/faster-rcnn.md": _boxes,
    "docs/other-tasks.md": _masks,
    "docs/prune-your-model.md": _weights_of_a_file,
    "docs/read-the-report.md": _run_of_digits,
    "docs/reload-and-export.md": _run_of_digits,
    "docs/torchvision-detectors.md": _boxes,
}


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if PYTHON.search(text)])
def test_the_python_examples_run(page, reader, monkeypatch, capsys):
    blocks = PYTHON.findall(PAGES[page])
    files = {match[1]: block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}
    for name, block in files.items():
        Path(name).write_text(block)
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    names = reader | (PREPARE.get(page, lambda *_: None)(reader["source"], monkeypatch) or {})
    for block in blocks:
        if block not in files.values():
            exec(compile(block, page, "exec"), names)
