"""Prune detectors of torchvision: they find handwritten digits on canvases, with half of their multiply-adds.

    python benchmarks/torchvision_detector.py --output runs/retinanet
    python benchmarks/torchvision_detector.py --output runs/retinanet --seed 1  # the same teacher, another search
    python benchmarks/torchvision_detector.py --detector fasterrcnn --output runs/fasterrcnn

docs/torchvision-detectors.md explains it.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scattered_digits import scattered_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign, box_iou, roi_align

import tas

SIZE = 64  # of the images
CLASSES = 11  # 0 is the background
Targets = list[dict[str, Tensor]]


class SingleStage(nn.Module):
    """What lies before the boxes are chosen: SSD, SSDlite, RetinaNet, FCOS."""

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Of images of the size the detector works in."""
        images = self.detector.transform.normalize(images)
        return self.detector.head(list(self.detector.backbone(images).values()))


class TwoStage(nn.Module):
    """The proposals before any is chosen, and what the heads say of a grid of boxes: Faster R-CNN and its kin."""

    def __init__(self, detector: Any, side: int, steps: int = 5):
        super().__init__()
        self.detector = detector
        corners = torch.cartesian_prod(*[torch.linspace(0, side / 2, steps)] * 2)
        self.register_buffer("boxes", torch.cat([corners, corners + side / 2], 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Of images of the size the detector works in."""
        maps = self.detector.backbone(self.detector.transform.normalize(images))
        scores, deltas = self.detector.rpn.head(list(maps.values()))
        found, heads = [*scores, *deltas], self.detector.roi_heads
        for kind in ("box", "mask", "keypoint"):
            if getattr(heads, f"{kind}_predictor") is not None:
                pool, head, predictor = (getattr(heads, f"{kind}_{part}") for part in ("roi_pool", "head", "predictor"))
                answer = predictor(head(self.pooled(maps, pool, images)))
                found += answer if isinstance(answer, tuple) else [answer]
        return found

    def pooled(self, maps: dict[str, Tensor], pool: Any, images: Tensor) -> Tensor:
        """All boxes from all maps; the detector itself chooses a map for every box, which no export can follow."""
        boxes, side = [self.boxes] * len(images), images.shape[-1]
        names = [name for name in pool.featmap_names if name in maps]
        scales = [maps[name].shape[-1] / side for name in names]
        size, ratio = pool.output_size, pool.sampling_ratio
        parts = zip(names, scales, strict=True)
        return torch.cat([roi_align(maps[name], boxes, size, scale, ratio) for name, scale in parts])


def as_dictionaries(targets: Tensor) -> Targets:
    """What torchvision wants, of targets (images, objects, 5): class, or -1 for no object, and corners in pixels."""
    kept = [rows[rows[:, 0] >= 0] for rows in targets]
    return [{"labels": rows[:, 0].long(), "boxes": rows[:, 1:]} for rows in kept]


class DetectionLoss:
    """The detector's own loss, anchors and choice of boxes: its own forward, whose head answers what it is given."""

    def __init__(self, model: SingleStage, example: Tensor):
        self.detector, self.image = copy.deepcopy(model.detector).eval(), example[0]
        with torch.no_grad():
            maps = self.detector.backbone(example[:1])  # only their sizes are looked at
        self.detector.backbone.forward = lambda _: maps

    def __call__(self, outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        """A scalar, the mean over the images."""
        self.detector.head.forward = lambda _: outputs
        return sum(self.detector.train()([self.image] * len(targets), as_dictionaries(targets)).values())

    def found(self, outputs: dict[str, Tensor]) -> Targets:
        """The boxes of every image."""
        self.detector.head.forward = lambda _: outputs
        return self.detector.eval()([self.image] * len(outputs["bbox_regression"]))


def mean_precision(found: Targets, targets: Targets) -> float:
    """mAP at an overlap of 0.5, in percent: precision when an object is found, mean over objects and classes."""
    precisions = []
    for label in range(1, CLASSES):
        rows, count = [torch.zeros(0, 2)], 0
        for answers, objects in zip(found, targets, strict=True):
            mine, true = answers["labels"] == label, objects["boxes"][objects["labels"] == label]
            overlap, count = box_iou(answers["boxes"][mine], true), count + len(true)
            for place, score in enumerate(answers["scores"][mine].tolist()):  # the surest first
                best = overlap[place].max() if len(true) else torch.zeros(())
                rows.append(torch.tensor([[score, float(best > 0.5)]]))
                if best > 0.5:
                    overlap[:, overlap[place].argmax()] = 0  # found
        table = torch.cat(rows)
        hits = table[table[:, 0].argsort(descending=True), 1]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        best = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
        precisions.append(float((best * hits).sum()) / max(1, count))
    return 100 * sum(precisions) / len(precisions)


@torch.no_grad()
def precision_of(detector: Any, loader: DataLoader[Any]) -> float:
    """mAP of a whole detector, used as torchvision uses it."""
    detector.eval()
    pairs = [(detector(list(images)), as_dictionaries(targets)) for images, targets in loader]
    return mean_precision(*([item for part in parts for item in part] for parts in zip(*pairs, strict=True)))


def fit(model: Any, loader: DataLoader[Any], *, epochs: int, learning_rate: float, teacher: Any = None) -> Any:
    """Train the whole detector as torchvision's reference does; with a teacher, also what it imitates of it."""
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for images, targets in loader:
            loss = sum(model.detector(list(images), as_dictionaries(targets)).values())
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher(images)
                pairs = zip(model(images), wanted, strict=True)
                loss = loss + torch.stack([F.mse_loss(*pair) for pair in pairs]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / len(loader):.3f}", file=sys.stderr, flush=True)
    return model.eval()


class Backbone(nn.Module):
    """Residual blocks at a stride of eight, one map."""

    def __init__(self, width: int = 64, blocks: int = 3):
        super().__init__()
        stem = [(3, width // 4), (width // 4, width // 2), (width // 2, width)]
        layers = [Conv2dNormActivation(*pair, stride=2) for pair in stem]
        self.stem, self.out_channels = nn.Sequential(*layers), width
        self.blocks = nn.Sequential(*[BasicBlock(width, width) for _ in range(blocks)])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """By name, as torchvision's own."""
        return {"0": self.blocks(self.stem(images))}


def build(name: str) -> SingleStage | TwoStage:
    """A detector of the digits: one of torchvision by name, or a small one, retinanet or fasterrcnn, of its parts."""
    options: dict[str, Any] = {"min_size": SIZE, "max_size": SIZE}
    anchors, backbone = AnchorGenerator(((16, 24),), ((1.0,),)), Backbone()
    if name == "retinanet":
        head = RetinaNetHead(backbone.out_channels, 2, CLASSES, partial(nn.GroupNorm, 8))
        return SingleStage(detection.RetinaNet(backbone, CLASSES, anchor_generator=anchors, head=head, **options))
    named: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    if name != "fasterrcnn" and "rcnn" not in name:
        detector = getattr(detection, name)(**named)
        detector.transform.min_size, detector.transform.max_size = (SIZE,), SIZE
        if detector.transform.fixed_size is not None:
            detector.transform.fixed_size = (SIZE, SIZE)
        return SingleStage(detector)
    options |= {"rpn_post_nms_top_n_train": 64, "rpn_post_nms_top_n_test": 25, "box_batch_size_per_image": 32}
    if name != "fasterrcnn":
        return TwoStage(getattr(detection, name)(**named, **options), SIZE)
    pool, head = MultiScaleRoIAlign(["0"], 5, 2), TwoMLPHead(backbone.out_channels * 25, 256)
    parts = {"box_roi_pool": pool, "box_head": head, "box_predictor": FastRCNNPredictor(256, CLASSES)}
    return TwoStage(detection.FasterRCNN(backbone, rpn_anchor_generator=anchors, **parts, **options), SIZE)


def loaders(images: int, tests: int, batch: int = 16) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Of the digits, targets in torchvision's classes and corners."""
    sets = []
    for part in scattered_digits(images=images, tests=tests, size=SIZE):
        pictures, targets = part.tensors
        known, half = targets[..., :1] >= 0, targets[..., 3:] / 2
        corners = torch.cat([targets[..., 1:3] - half, targets[..., 1:3] + half], -1) * SIZE
        sets.append(TensorDataset(pictures, torch.where(known, torch.cat([targets[..., :1] + 1, corners], -1), -1.0)))
    return DataLoader(sets[0], batch, shuffle=True), DataLoader(sets[1], len(sets[1]))


def main(words: list[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--detector", default="retinanet", help="retinanet, fasterrcnn, or a name of torchvision")
    parser.add_argument("--output", type=Path, default=Path("runs/torchvision"), help="folder of teacher and runs")
    parser.add_argument("--budget", default="50%", help="of the multiply-adds")
    parser.add_argument("--images", type=int, default=1500, help="to train on")
    parser.add_argument("--teacher_epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=15, help="of the small network")
    parser.add_argument("--seed", type=int, default=0, help="of the search and the training")
    options = parser.parse_args(words)
    torch.manual_seed(0)
    model, data, weights = build(options.detector), loaders(options.images, 300), options.output / "teacher.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
    else:
        fit(model, data[0], epochs=options.teacher_epochs, learning_rate=0.02)
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights)
    model.eval()
    torch.manual_seed(options.seed)
    folder, example = options.output / f"seed{options.seed}", torch.zeros(1, 3, SIZE, SIZE)
    train = tas.TrainConfig(epochs=options.epochs, warmup_epochs=1, batch_size=16, learning_rate=0.01)
    config = tas.CompressConfig(train=train, seed=options.seed)
    if isinstance(model, SingleStage):
        loss = DetectionLoss(model, example)
        result = tas.compress(
            model, data, budget=options.budget, loss=loss, config=config, output=folder,
            metric=lambda outputs, targets: mean_precision(loss.found(outputs), as_dictionaries(targets)),
        )  # fmt: skip
        graph, architecture = result.graph, result.architecture
    else:
        graph = tas.trace(model, example)
        ranked = tas.rank(model, graph)
        supernet = tas.Supernet(ranked, graph, tas.SearchSpace.of(graph))
        architecture = tas.search(
            supernet, data, budget=options.budget, teacher=model, config=replace(config.search, seed=options.seed),
            loss=lambda outputs, targets: torch.zeros(()),  # the teacher's answers alone
        ).architecture  # fmt: skip
        small = tas.derive(ranked, graph, architecture)
        fit(small, data[0], epochs=options.epochs, learning_rate=0.01, teacher=model)
        tas.save(folder, small, graph, architecture)
    small = tas.load(folder, build(options.detector))
    print(
        f"seed {options.seed}: mAP50 {precision_of(model.detector, data[1]):.2f} -> "
        f"{precision_of(small.detector, data[1]):.2f} %, "
        f"multiply-adds {graph.macs() / 1e6:.1f} -> {graph.macs(architecture) / 1e6:.1f} M, "
        f"parameters {graph.params() / 1e6:.2f} -> {graph.params(architecture) / 1e6:.2f} M"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
