"""Prune a YOLO: teach it to find handwritten digits that lie about on a canvas, halve its multiply-adds, distil it.

    pip install ultralytics                                        # AGPL-3.0; not among our extras
    python benchmarks/detector.py --output runs/detector           # some twenty minutes on one core
    python benchmarks/detector.py --output runs/detector --seed 1  # the same teacher, another search and training

docs/detectors.md explains it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from scattered_digits import scattered_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import ap_per_class, box_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.tal import make_anchors

import tas

SIZE = 64  # of the images


class Detector(nn.Module):
    """A YOLO whose answer is the same in training and evaluation: raw boxes and scores, which a student can imitate."""

    def __init__(self, name: str = "yolov8n.yaml", classes: int = 10):
        super().__init__()
        self.yolo = DetectionModel(name, nc=classes, verbose=False)
        self.yolo.args = DEFAULT_CFG  # the weights of the terms of its loss

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(images, channels of a box or classes, places), for every place of every map."""
        found = self.yolo(images)
        found = found[1] if isinstance(found, tuple) else found
        return {"boxes": found["boxes"], "scores": found["scores"]}


def maps_of(model: Detector, size: int) -> list[Tensor]:
    """Of the maps on which a YOLO looks for objects, the sizes alone, on its device."""
    device = next(model.parameters()).device
    return [torch.zeros(1, 1, size // stride, size // stride, device=device) for stride in (8, 16, 32)]


class DetectionLoss:
    """Ultralytics' loss; targets are (images, objects, 5): class, or -1 for no object, centre and size in [0, 1]."""

    def __init__(self, model: Detector, size: int):
        self.criterion, self.maps = v8DetectionLoss(model.yolo), maps_of(model, size)

    def __call__(self, outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        """A scalar, the mean over the images."""
        place, which = (targets[..., 0] >= 0).nonzero(as_tuple=True)
        rows = targets[place, which]
        batch = {"batch_idx": place, "cls": rows[:, 0], "bboxes": rows[:, 1:]}
        terms, _ = self.criterion({**outputs, "feats": self.maps}, batch)
        return terms.sum() / len(targets)


class MeanPrecision:
    """mAP at an overlap of 0.5, in percent, over one batch: the whole test set."""

    def __init__(self, model: Detector, size: int):
        self.criterion, self.maps, self.size = v8DetectionLoss(model.yolo), maps_of(model, size), size

    @torch.no_grad()
    def __call__(self, outputs: dict[str, Tensor], targets: Tensor) -> float:
        """Of all images at once."""
        anchors, strides = make_anchors(self.maps, self.criterion.stride, 0.5)
        low, high = (self.criterion.bbox_decode(anchors, outputs["boxes"].mT) * strides).chunk(2, 2)
        answers = torch.cat([(low + high) / 2, high - low, outputs["scores"].mT.sigmoid()], 2).mT
        columns: list[list[Tensor]] = [[], [], [], []]
        for found, objects in zip(non_max_suppression(answers, 0.001, 0.7), targets, strict=True):
            objects = objects[objects[:, 0] >= 0]
            parts = self._right(found, objects), found[:, 4], found[:, 5], objects[:, 0]
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
        return 100 * float(ap_per_class(*(torch.cat(column).cpu().numpy() for column in columns))[5][:, 0].mean())

    def _right(self, found: Tensor, objects: Tensor) -> Tensor:
        """(answers, 1): whether each, the surest first, is of an object that none before it has found."""
        centre, half = objects[:, 1:3] * self.size, objects[:, 3:] * self.size / 2
        overlap = box_iou(torch.cat([centre - half, centre + half], 1), found[:, :4])
        overlap = overlap * (objects[:, :1] == found[:, 5])
        right = torch.zeros(len(found), 1, dtype=torch.bool, device=found.device)
        for place in found[:, 4].argsort(descending=True).tolist():
            if len(objects) and overlap[:, place].max() > 0.5:
                right[place] = True
                overlap[overlap[:, place].argmax()] = 0  # found
        return right


def main(words: list[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/detector"), help="folder of the teacher and the runs")
    parser.add_argument("--budget", default="50%", help="of the multiply-adds")
    parser.add_argument("--seed", type=int, default=0, help="of the search and the training")
    options = parser.parse_args(words)
    torch.manual_seed(0)
    model, (train, test), weights = Detector(), scattered_digits(size=SIZE), options.output / "teacher.pt"
    data = DataLoader(train, 32, shuffle=True), DataLoader(test, len(test))
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # where its loss then is, too
    loss, metric = DetectionLoss(model, SIZE), MeanPrecision(model, SIZE)
    if weights.exists():
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    else:
        teacher = tas.TrainConfig(epochs=20, warmup_epochs=1, batch_size=32, learning_rate=0.02)
        model = tas.train(model, data, config=teacher, loss=loss)
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights)
    config = tas.CompressConfig(
        train=tas.TrainConfig(epochs=10, warmup_epochs=1, batch_size=32, learning_rate=0.01), seed=options.seed
    )
    result = tas.compress(
        model, data, budget=options.budget, loss=loss, metric=metric, config=config,
        output=options.output / f"seed{options.seed}",
    )  # fmt: skip
    print(f"seed {options.seed}: mAP50 {result.full.accuracy:.2f} -> {result.pruned.accuracy:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
