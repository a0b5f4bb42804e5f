"""What `test_distributed.py` runs in one process and in two: `python tests/processes.py FOLDER`."""

import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from toys import TinyNet

import tas
from tas.cli import main
from tas.distributed import from_main, process_index
from tas.errors import RunError

TRAIN = "train --model tests/toys.py:build --data digits --train.epochs 1 --output"


def loaders(samples: int = 64, classes: int = 4) -> tuple[DataLoader, DataLoader]:
    """Random float64 images in batches of 16; nothing is learned, but everything moves."""
    images = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dataset = TensorDataset(images, torch.arange(samples) % classes)
    return DataLoader(dataset, 16, shuffle=True), DataLoader(dataset, 16)


def searched(model: TinyNet, graph: tas.Graph, folder: Path, teacher: TinyNet) -> dict[str, Any]:
    """Saliency, two epochs, the second of which is interrupted and done again, and successive halving."""
    config = tas.SearchConfig(
        epochs=2, start="trained", logits_start="saliency", architectures=6, halving_steps=6,
        halving_images=32, held_out_images=32, batch_size=16, logits_learning_rate=0.05, teacher_weight=0.5,
        sync_batch_norm=True,
    )  # fmt: skip

    def interrupt(row: dict[str, Any]) -> None:
        if row.get("epoch") == 1:
            raise KeyboardInterrupt

    record = tas.Record()
    for listeners in ([interrupt], []):
        supernet = tas.Supernet(model, graph, tas.SearchSpace.of(graph)).double()
        record.listeners = listeners
        try:
            found = tas.search(
                supernet, loaders(), budget="50%", config=config, teacher=teacher, record=record,
                checkpoint=folder / "search.pt",
            )  # fmt: skip
        except KeyboardInterrupt:
            continue
    losses = [row["loss"] for row in record.rows if "loss" in row]
    losses += [loss for row in record.rows if row.get("part") == "halving" for loss in row["losses"]]
    return {
        "supernet": supernet.state_dict(),
        "scores": found.scores.log_probabilities,
        "losses": losses,
        "found": found.architecture,
    }


def work(folder: Path) -> dict[str, Any]:
    """Search and train; what all processes must agree on, and how many images each had in a batch."""
    torch.manual_seed(process_index())  # all must end with the weights of the main process
    model, teacher = TinyNet().double(), TinyNet().double()
    graph = tas.Graph.from_json((folder / "graph.json").read_text())
    search = searched(model, graph, folder, teacher)
    small = tas.derive(model, graph, search["found"])
    config = tas.TrainConfig(epochs=2, learning_rate=0.05, transfer="hints", sync_batch_norm=True)
    record, sizes = tas.Record(), set[int]()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        sizes.add(len(labels))
        return F.cross_entropy(outputs, labels)

    small = tas.train(small, loaders(), teacher=teacher, config=config, loss=loss, record=record)
    losses = [row["loss"] for row in record.rows]
    search["found"] = search["found"].to_json()
    return {**search, "small": small.state_dict(), "train losses": losses, "sizes": sizes}


def fails_on_main() -> None:
    """An error that only the main process can know."""
    raise RunError("the main process has failed")


def run(folder: Path) -> dict[str, Any]:
    """As `work`; then an error and the command line."""
    found = work(folder)
    try:
        from_main(fails_on_main)()
    except RunError as error:
        found["error"] = str(error)
    rank = process_index()
    with redirect_stdout(StringIO()) as said:
        code = main([*TRAIN.split(), str(folder / "run")])
    return {**found, "rank": rank, "code": code, "said": said.getvalue()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    from tas.distributed import join

    join()
    place = Path(sys.argv[1])
    torch.save(run(place), place / f"{os.environ['RANK']}.pt")
