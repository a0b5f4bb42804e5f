"""Run folders made by hand, for the tests of what is told about runs."""

import json
import random
from pathlib import Path

import torch
from toys import TinyNet

import tas

PROFILE = {"macs": 1000, "params": 50, "accuracy": 90.0, "latency_ms": 2.0}
SUMMARY = {
    "full": PROFILE,
    "pruned": {"macs": 480, "params": 20, "accuracy": 89.25, "latency_ms": 1.0},
    "budget": {"macs": "50%", "params": 2500},
    "seconds": {"teacher": 0.0, "search": 12.0, "train": 3.0, "total": 20.0},
    "seed": 3,
    "versions": {"torch": "2.11"},
}


def write_run(folder: Path, *, epochs: int = 5, graph: tas.Graph | None = None, finished: bool = True) -> Path:
    """A run with a random architecture after every epoch, and the smallest as its result."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = graph or tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    space, chance = tas.SearchSpace.of(graph), random.Random(0)
    (folder / "graph.json").write_text(graph.to_json())
    (folder / "config.yaml").write_text("model: mine.py:build\ndata: digits\nseed: 3\nteacher: {}\nsearch: {epochs: 9}")
    record = tas.Record(folder / "record.jsonl")
    record.add("start", seed=3, versions={"torch": "2.11"})
    for epoch in range(epochs):
        widths = {name: chance.choice(sizes) for name, sizes in space.widths.items()}
        found = tas.Architecture(widths, {name: chance.choice(sizes) for name, sizes in space.depths.items()})
        record.add(
            "search", epoch=epoch, seconds=1.0, loss=2.0 - epoch / epochs, held_out_loss=2.5, temperature=5.0,
            entropy=1.5, expected={"macs": graph.macs(found)}, most_probable={"macs": graph.macs(found)},
            architecture=found.to_dict(),
        )  # fmt: skip
    if finished:
        for epoch in range(3):
            record.add("train", epoch=epoch, seconds=1.0, loss=1.0, accuracy=80.0 + epoch)
        (folder / "architecture.json").write_text(space.smallest.to_json())
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder
