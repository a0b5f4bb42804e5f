"""benchmarks/torchvision_detector.py measures what it says; the pages about it run in test_docs.py."""

import pytest
import torch
from scripts import load_script

script = load_script("torchvision_detector")
TARGETS = torch.tensor([[[1.0, 10, 10, 40, 40], [-1] * 5], [[3.0, 5, 20, 30, 50], [2.0, 30, 2, 60, 30]]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = script.build("retinanet").eval()
    for parameter in model.detector.head.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05  # so that some scores are high
    return model


def test_loss_and_boxes_are_those_of_the_whole_detector(model):
    images, example = torch.rand(2, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    loss, outputs = script.DetectionLoss(model, example), model(images)
    found = model.detector(list(images))
    assert min(len(answer["boxes"]) for answer in found) > 0
    for ours, theirs in zip(loss.found(outputs), found, strict=True):
        torch.testing.assert_close(ours, theirs)
    model.detector.train()
    model.detector.backbone.eval()  # with the statistics that it has
    theirs = sum(model.detector(list(images), script.as_dictionaries(TARGETS)).values())
    ours = loss(outputs, TARGETS)
    torch.testing.assert_close(ours, theirs)
    assert ours.requires_grad


def test_every_object_counts_at_the_precision_at_which_it_is_found():
    targets = script.as_dictionaries(TARGETS)
    right = [{**item, "scores": torch.full((len(item["labels"]),), 0.9)} for item in targets]
    assert script.mean_precision(right, targets) == pytest.approx(30)  # three of ten classes
    wrong = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.tensor([0.95])}
    surer = [{name: torch.cat([wrong[name], right[0][name]]) for name in wrong}, right[1]]
    assert script.mean_precision(surer, targets) == pytest.approx(25)  # the only one of its class, found as second
    twice = [{name: torch.cat([value, value]) for name, value in item.items()} for item in right]
    assert script.mean_precision(twice, targets) == pytest.approx(30)
    assert script.mean_precision([{name: value[:0] for name, value in item.items()} for item in right], targets) == 0
