"""The loss of a batch by what is learned from the teacher, and what is checked before anything long begins."""

import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from toys import TinyNet, tiny_source

from tas.data import as_source
from tas.errors import ConfigError, DataError, ModelError
from tas.nn.transfer import decoupled_loss, distillation_loss, imitation_loss, relation_loss
from tas.task import (
    TRANSFER_WEIGHTS,
    accuracy,
    require_fit_for_data,
    require_fit_for_test,
    require_logits,
    run_model,
    task_loss,
    warn_of_slow_precision,
)

LABELS = torch.tensor([0, 1, 2, 3])
OUTPUTS, WANTED = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
PLAIN = F.cross_entropy(OUTPUTS, LABELS)


def smoothed(outputs, targets):
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def loss_of(transfer, *, loss=None, wanted=WANTED, weight=None):
    return task_loss(
        OUTPUTS, LABELS, loss=loss, wanted=wanted, teacher_weight=0.3, temperature=2.0, transfer=transfer,
        transfer_weight=weight,
    )  # fmt: skip


@pytest.mark.parametrize("transfer", ["none", "kd", "hints", "attention", "dkd", "dist"])
def test_without_a_teacher_only_the_labels_count(transfer):
    assert torch.equal(loss_of(transfer, wanted=None), PLAIN)
    assert torch.equal(loss_of(transfer, wanted=None, loss=smoothed), smoothed(OUTPUTS, LABELS))


@pytest.mark.parametrize("transfer", ["none", "hints", "attention"])
def test_outputs_of_the_teacher_count_only_where_they_are_learned_from(transfer):
    assert torch.equal(loss_of(transfer), PLAIN)


def test_each_transfer_adds_its_own_term():
    mixed = distillation_loss(OUTPUTS, WANTED, LABELS, temperature=2.0, teacher_weight=0.3)
    torch.testing.assert_close(loss_of("kd"), mixed)
    decoupled = decoupled_loss(OUTPUTS, WANTED, LABELS, temperature=2.0, other_weight=2.0)
    torch.testing.assert_close(loss_of("dkd"), PLAIN + decoupled)
    torch.testing.assert_close(loss_of("dist"), PLAIN + relation_loss(OUTPUTS, WANTED, temperature=2.0))
    assert TRANSFER_WEIGHTS == {"hints": 100.0, "attention": 500.0, "dkd": 2.0, "dist": 1.0}


@pytest.mark.parametrize("transfer", ["none", "kd", "dkd", "dist"])
@pytest.mark.parametrize("loss", [None, lambda outputs, targets: F.cross_entropy(outputs["logits"], targets)])
def test_the_logits_among_several_outputs_are_what_is_taught(transfer, loss):
    options = {"loss": loss, "teacher_weight": 0.3, "temperature": 2.0, "transfer": transfer}
    outputs, wanted = ({"hidden_states": OUTPUTS, "logits": logits} for logits in (OUTPUTS, WANTED))
    found = task_loss(outputs, LABELS, wanted=wanted, **options)
    if loss is None or transfer != "kd":
        torch.testing.assert_close(found, loss_of(transfer))
    else:  # a loss of one's own may be of all outputs: all are imitated
        parts = (imitation_loss(OUTPUTS, OUTPUTS) + imitation_loss(OUTPUTS, WANTED)) / 2
        torch.testing.assert_close(found, 0.7 * PLAIN + 0.3 * parts)
    assert accuracy(outputs, LABELS) == accuracy(OUTPUTS, LABELS)


def test_the_weight_can_be_given():
    decoupled = decoupled_loss(OUTPUTS, WANTED, LABELS, temperature=2.0, other_weight=8.0)
    torch.testing.assert_close(loss_of("dkd", weight=8.0), PLAIN + decoupled)
    torch.testing.assert_close(loss_of("dist", weight=3.0), PLAIN + 3 * relation_loss(OUTPUTS, WANTED, temperature=2.0))


def test_a_loss_of_ones_own_takes_the_place_of_cross_entropy():
    own = smoothed(OUTPUTS, LABELS)
    torch.testing.assert_close(loss_of("kd", loss=smoothed), 0.7 * own + 0.3 * imitation_loss(OUTPUTS, WANTED))
    torch.testing.assert_close(loss_of("dist", loss=smoothed), own + relation_loss(OUTPUTS, WANTED, temperature=2.0))


@pytest.mark.parametrize("transfer", ["dkd", "dist"])
def test_transfers_of_classes_are_refused_for_other_tasks_before_training(transfer):
    def regression(outputs, targets):
        return F.mse_loss(outputs, targets)

    targets = torch.zeros(4, 5)
    with pytest.raises(ConfigError, match=f"transfer {transfer} is for a classification with one label per sample"):
        task_loss(
            OUTPUTS, targets, loss=regression, wanted=WANTED, teacher_weight=0.9, temperature=4.0, transfer=transfer
        )
    with pytest.raises(ConfigError, match="choose kd, hints or attention"):
        require_fit_for_data(
            PixelNet(), tiny_source(), loss=lambda outputs, targets: outputs.mean(), metric=lambda *pair: 0.0,
            transfer=transfer,
        )  # fmt: skip


def test_labels_to_ignore_count_neither_as_right_nor_as_wrong():
    right = F.one_hot(LABELS, 5).float()
    assert accuracy(right, torch.tensor([0, 1, -100, 4])) == pytest.approx(200 / 3)
    assert math.isnan(accuracy(right, torch.full((4,), -100)))
    pixels = right.view(1, 5, 2, 2)  # scores by channel
    labels = pixels.argmax(1)
    labels[0, 0, 0] = 255
    assert accuracy(pixels, labels) == 100.0
    labels[0, 1, 1] = (labels[0, 1, 1] + 1) % 5
    assert accuracy(pixels, labels) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("answer", "kind"), [({"acc": 1.0}, "dict"), (torch.rand(3), r"shape \(3,\)"), (None, "NoneType")]
)
def test_a_metric_that_gives_no_number_is_refused_before_training(answer, kind):
    with pytest.raises(ConfigError, match=f"metric= must give one number, but returned {kind}"):
        require_fit_for_data(TinyNet(), tiny_source(), metric=lambda outputs, targets: answer)
    with pytest.raises(ConfigError, match=f"metric= must give one number, but returned {kind}"):
        require_fit_for_test(TinyNet(), tiny_source(), lambda outputs, targets: answer)


def test_the_test_set_is_tried_before_training():
    images = torch.rand(8, 3, 8, 8)
    train, test = (DataLoader([(image, label) for image in images], 4) for label in (1, 7))
    with pytest.raises(DataError, match="the data has a label 7, the model only 4 classes"):
        require_fit_for_test(TinyNet(), as_source((train, test)))
    require_fit_for_data(TinyNet(), as_source((train, test)))


class PixelNet(TinyNet):
    def forward(self, images):
        return self.stem(images)


def test_what_is_not_finite_before_training_is_blamed_on_images_or_weights():
    model = TinyNet()
    with pytest.raises(ModelError, match="not finite on training images; image [01] of batch 0 has NaN"):
        require_fit_for_data(model, tiny_source(3, broken=0))
    nn.init.constant_(model.head.weight, math.nan)
    with pytest.raises(ModelError, match="not finite on training images; check its weights for NaN"):
        require_fit_for_data(model, tiny_source())


def test_layers_are_checked_before_training():
    require_fit_for_data(TinyNet(), tiny_source(), transfer="hints", layers=["blocks"])
    with pytest.raises(ConfigError, match="there is no layer 'block' in TinyNet"):
        require_fit_for_data(TinyNet(), tiny_source(), transfer="hints", layers=["block"])
    with pytest.raises(ConfigError, match="layer 'head' of the student gives .2, 4.; name layers that give feature"):
        require_fit_for_data(TinyNet(), tiny_source(), transfer="hints", layers=["head"])
    source = tiny_source()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(source.input_shape), 4))
    with pytest.raises(ConfigError, match="no feature maps .* or choose transfer=kd"):
        require_fit_for_data(flat, source, transfer="attention")


@pytest.mark.parametrize(
    ("capability", "precision", "device", "is_slow"),
    [("AVX2", "bf16", "cpu", True), ("AVX2", "fp16", "cpu", True), ("AVX2", "no", "cpu", False),
     ("AVX512", "bf16", "cpu", False), ("AVX2", "bf16", "cuda", False), ("DEFAULT", "bf16", "cpu", False)],
)  # fmt: skip
def test_a_processor_without_half_precision_is_named(capability, precision, device, is_slow, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_slow_precision(precision, device)
    assert len(caught) == is_slow
    assert all(f"({capability}) has no instructions for {precision}" in str(one.message) for one in caught)


class Auxiliary(TinyNet):
    """Answers while it trains as torchvision's GoogLeNet does."""

    def forward(self, images):
        logits = super().forward(images)
        return SimpleNamespace(logits=logits, aux=2 * logits) if self.training else logits


def test_logits_beside_auxiliary_ones_are_what_is_learned():
    require_fit_for_data(Auxiliary(), tiny_source())
    outputs = SimpleNamespace(logits=OUTPUTS, aux=WANTED)
    found = task_loss(outputs, LABELS, loss=None, teacher_weight=0.0, temperature=1.0)
    assert torch.equal(found, PLAIN)


class Changing(TinyNet):
    """Gives a tuple while it trains."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


def test_what_a_model_answers_while_it_trains_is_tried_before_training():
    with pytest.raises(DataError, match="this is not a classification"):
        require_fit_for_data(Changing(), tiny_source())


def test_whole_numbers_among_the_outputs_are_not_imitated():
    outputs, wanted = ({"scores": scores, "classes": scores.argmax(1)} for scores in (OUTPUTS, WANTED))
    options = {"loss": lambda outputs, targets: outputs["scores"].mean(), "teacher_weight": 1.0, "temperature": 1.0}
    assert torch.equal(task_loss(outputs, LABELS, wanted=wanted, **options), imitation_loss(OUTPUTS, WANTED))
    classes = ({"classes": nest["classes"]} for nest in (outputs, wanted))
    with pytest.raises(ModelError, match="no common shape to imitate"):
        task_loss(next(classes), LABELS, wanted=next(classes), **{**options, "loss": lambda *pair: PLAIN})


class Failing(TinyNet):
    def __init__(self, message):
        super().__init__()
        self.message = message

    def forward(self, images):
        raise RuntimeError(self.message)


def test_errors_of_the_machine_are_not_blamed_on_the_images():
    images = torch.zeros(1, 3, 8, 8)
    for message in ("CUDA error: no kernel image is available", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"):
        with pytest.raises(RuntimeError, match=message):
            run_model(Failing(message), images)
    with pytest.raises(ModelError, match="a tensor that does not move to cpu with it .*make it a buffer"):
        run_model(Failing("Expected all tensors to be on the same device, but got index on cpu"), images)


@pytest.mark.parametrize(
    ("outputs", "targets", "words"),
    [
        (torch.zeros(2, 3), torch.eye(3)[:2], "the targets are float32 of shape (2, 3)"),
        ((torch.zeros(2, 3), torch.zeros(2)), torch.zeros(2).long(), "answers with a tuple of Tensor, Tensor"),
        ({"out": torch.zeros(2, 3)}, torch.zeros(2).long(), "answers with a dict"),
    ],
)
def test_what_is_no_classification_is_told_by_what_was_found(outputs, targets, words):
    with pytest.raises(DataError, match=re.escape(words)):
        require_logits(outputs, targets)


def test_labels_that_begin_at_one_are_told_from_a_model_with_too_few_classes():
    with pytest.raises(DataError, match="a label 3, the model only 3 classes, 0 to 2; number the classes from 0, or"):
        require_logits(torch.zeros(2, 3), torch.tensor([1, 3]))


def test_a_teacher_of_other_classes_is_refused_where_its_outputs_count():
    given = {"loss": None, "wanted": torch.zeros(2, 7), "teacher_weight": 0.5, "temperature": 4.0}
    for transfer in ("kd", "dkd", "dist"):
        with pytest.raises(ModelError, match="the teacher has 7 classes, the model 3"):
            task_loss(torch.zeros(2, 3), torch.zeros(2).long(), transfer=transfer, **given)
    for transfer in ("hints", "attention"):
        assert task_loss(torch.zeros(2, 3), torch.zeros(2).long(), transfer=transfer, **given) == pytest.approx(
            math.log(3)
        )


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, "mse"])
def test_a_loss_that_is_no_function_is_refused_before_training(loss):
    with pytest.raises(ConfigError, match=r"pass a function of \(outputs, targets\), such as nn.CrossEntropyLoss\(\)"):
        require_fit_for_data(TinyNet(), tiny_source(), loss=loss)
