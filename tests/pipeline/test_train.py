"""One loop trains teachers and students, repeats itself, and can be interrupted."""

import math
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import TinyNet, build_nan, tiny_source

import tas
from tas.nn.transfer import attention_loss
from tas.pipeline.measure import evaluate
from tas.pipeline.train import TrainConfig, learning_rate_factor
from tas.storage import load_state


def quick(**options) -> TrainConfig:
    return TrainConfig(**{"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 0.1, **options})


def fresh(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_learns_the_toy_task():
    model = tas.train(fresh(), tiny_source(), config=quick(epochs=15))
    assert evaluate(model, tiny_source()) > 90
    assert not model.training


def test_the_model_given_is_trained_in_place_and_returned():
    model = fresh()
    assert tas.train(model, tiny_source(), config=quick(epochs=1)) is model


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    runs = [tas.train(fresh(), tiny_source(), config=quick(seed=seed)) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("epochs", [4, 2.5])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, epochs):
    class Interrupts(tas.Record):
        def add(self, stage, **values):
            super().add(stage, **values)
            if values["epoch"] == 2:
                raise KeyboardInterrupt

    config, file = quick(epochs=epochs), tmp_path / "train.pt"
    whole = tas.train(fresh(), tiny_source(), config=config)
    with pytest.raises(KeyboardInterrupt):
        tas.train(fresh(), tiny_source(), config=config, record=Interrupts(), checkpoint=file)
    assert same(tas.train(fresh(seed=9), tiny_source(), config=config, checkpoint=file), whole)


@pytest.mark.parametrize("epochs", [4, 1.5])
def test_a_finished_checkpoint_trains_no_further(tmp_path, epochs):
    config, file, record = quick(epochs=epochs), tmp_path / "train.pt", tas.Record()
    whole = tas.train(fresh(), tiny_source(), config=config, checkpoint=file)
    again = tas.train(fresh(seed=9), tiny_source(), config=config, checkpoint=file, record=record)
    assert same(whole, again)
    assert record.rows == []


def test_a_checkpoint_of_other_options_or_a_damaged_one_is_refused(tmp_path):
    file = tmp_path / "train.pt"
    tas.train(fresh(), tiny_source(), config=quick(epochs=1), checkpoint=file)
    with pytest.raises(tas.RunError, match="other options"):
        tas.train(fresh(), tiny_source(), config=quick(epochs=2), checkpoint=file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(tas.RunError, match="not a readable checkpoint"):
        tas.train(fresh(), tiny_source(), config=quick(epochs=1), checkpoint=file)


def test_a_student_follows_its_teacher_and_leaves_it_unchanged():
    teacher = fresh(3).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}

    def distance(model):
        inputs = torch.cat([batch for batch, _ in tiny_source().test_batches(16)])
        with torch.no_grad():
            return float(
                F.kl_div(
                    model(inputs).log_softmax(1), teacher(inputs).log_softmax(1), log_target=True, reduction="batchmean"
                )
            )

    config = quick(epochs=10, teacher_weight=1.0, temperature=1.0)
    student = tas.train(fresh(4), tiny_source(), teacher=teacher, config=config)
    assert distance(student) < 0.5 * distance(fresh(4).eval())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_no_weight_for_the_teacher_is_no_teacher():
    with_teacher = tas.train(fresh(), tiny_source(), teacher=fresh(3), config=quick(teacher_weight=0.0))
    assert same(with_teacher, tas.train(fresh(), tiny_source(), config=quick()))


TRANSFERS = ["kd", "hints", "attention", "dkd", "dist"]


def small(seed: int = 4) -> TinyNet:
    """A student with fewer channels, and a block that was dropped."""
    torch.manual_seed(seed)
    model = TinyNet(width=5)
    model.blocks[2] = torch.nn.Identity()
    return model


def teacher() -> TinyNet:
    return tas.train(fresh(3), tiny_source(), config=quick(epochs=8))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_pruned_student_learns_with_every_transfer_and_keeps_no_trace_of_it(transfer):
    helper, student = teacher(), small()
    before = {name: value.clone() for name, value in helper.state_dict().items()}
    names = list(student.state_dict())
    record = tas.Record()
    # maps of 8x8 pixels in batches of 16: both weights of features are large for so short a training
    tas.train(
        student,
        tiny_source(),
        teacher=helper,
        config=quick(epochs=10, learning_rate=0.05, transfer=transfer),
        record=record,
    )
    assert evaluate(student, tiny_source()) > 80
    assert record.rows[-1]["loss"] < record.rows[0]["loss"]
    assert list(student.state_dict()) == names
    assert all(torch.equal(value, before[name]) for name, value in helper.state_dict().items())
    assert not any(module._forward_hooks for net in (student, helper) for module in net.modules())


def test_every_transfer_trains_to_something_else():
    helper = teacher()
    ends = [
        tas.train(small(), tiny_source(), teacher=helper, config=quick(epochs=1, transfer=transfer))
        for transfer in ["none", *TRANSFERS]
    ]
    assert same(ends[0], tas.train(small(), tiny_source(), config=quick(epochs=1)))
    assert not any(same(one, other) for place, one in enumerate(ends) for other in ends[:place])


@pytest.mark.parametrize("transfer", ["hints", "attention"])
def test_features_of_the_student_come_closer_to_the_teachers(transfer):
    helper, inputs = teacher(), tiny_source()._test[0]

    def distance(model):
        with torch.no_grad():
            ours, theirs = (net.blocks(net.stem(inputs)) for net in (model, helper))
        if transfer == "attention":
            return float(attention_loss(ours, theirs))
        ours, theirs = (values.transpose(0, 1).flatten(1).T for values in (ours, theirs))  # the best linear regressor
        ours = torch.cat([ours, torch.ones(len(ours), 1)], 1)
        return float((ours @ torch.linalg.lstsq(ours, theirs).solution - theirs).square().mean())

    without = tas.train(small(), tiny_source(), teacher=helper, config=quick(epochs=10, transfer="none"))
    config = quick(epochs=10, learning_rate=0.05, transfer=transfer, layers="blocks")
    assert distance(tas.train(small(), tiny_source(), teacher=helper, config=config)) < 0.8 * distance(without)


@pytest.mark.parametrize("transfer", ["hints", "attention"])
def test_an_interrupted_training_on_features_ends_with_the_same_weights(tmp_path, transfer):
    class Interrupts(tas.Record):
        def add(self, stage, **values):
            super().add(stage, **values)
            if values["epoch"] == 1:
                raise KeyboardInterrupt

    helper, config, file = teacher(), quick(transfer=transfer, learning_rate=0.02), tmp_path / "train.pt"
    whole = tas.train(small(), tiny_source(), teacher=helper, config=config)
    student = small()
    with pytest.raises(KeyboardInterrupt):
        tas.train(student, tiny_source(), teacher=helper, config=config, record=Interrupts(), checkpoint=file)
    assert not any(module._forward_hooks for net in (student, helper) for module in net.modules())
    assert same(tas.train(small(9), tiny_source(), teacher=helper, config=config, checkpoint=file), whole)


def test_regressors_learn_and_are_in_the_checkpoint_but_not_in_the_model(tmp_path):
    ends = []
    for rate in (1e-9, 0.02):
        student, config = small(), quick(epochs=1, transfer="hints", layers="stem", learning_rate=rate)
        file = tmp_path / f"{rate}.pt"
        tas.train(student, tiny_source(), teacher=teacher(), config=config, checkpoint=file)
        assert not any("regressor" in name for name in student.state_dict())
        ends.append(load_state(file)["comparison"]["regressors.0.0.weight"])
    assert ends[0].shape == (8, 5, 1)
    assert float((ends[0] - ends[1]).abs().max()) > 1e-3


def test_a_checkpoint_without_regressors_is_refused(tmp_path):
    file, helper = tmp_path / "train.pt", fresh(3)
    tas.train(small(), tiny_source(), config=quick(epochs=1, transfer="hints"), checkpoint=file)  # without a teacher
    with pytest.raises(tas.RunError, match="not a checkpoint of this stage"):
        tas.train(small(), tiny_source(), teacher=helper, config=quick(epochs=1, transfer="hints"), checkpoint=file)


def test_features_of_layers_that_do_not_exist_are_refused():
    with pytest.raises(tas.ConfigError, match=r"no layer 'blok' in TinyNet \(did you mean blocks"):
        tas.train(small(), tiny_source(), teacher=fresh(3), config=quick(transfer="hints", layers=("blok",)))


def test_features_work_in_low_precision_and_for_other_tasks():
    def regression(outputs, targets):
        return F.mse_loss(outputs[:, 0], targets.float())

    for transfer in ("hints", "attention"):
        config = quick(epochs=1, transfer=transfer, precision="bf16", learning_rate=0.01)
        record = tas.Record()
        tas.train(small(), tiny_source(), teacher=fresh(3), config=config, loss=regression, record=record)
        assert math.isfinite(record.rows[0]["loss"])


def test_layers_are_a_list_or_text_with_commas():
    assert quick(transfer="hints", layers="blocks, stem").layers == ("blocks", "stem")
    assert quick(transfer="hints", layers=["blocks", "stem"]) == quick(transfer="hints", layers="blocks,stem")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"transfer": "fitnet"}, "'fitnet'; it can be none or kd or hints or attention or dkd or dist"),
     ({"transfer": "hints", "transfer_weight": 0.0}, "transfer_weight is 0.0; it must be above 0"),
     ({"transfer_weight": 1.0}, "transfer is kd, which does not use it; the weight of kd is teacher_weight"),
     ({"layers": "blocks"}, "layers are blocks, but transfer is kd, which does not use them; choose hints or")],
)  # fmt: skip
def test_transfers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(tas.ConfigError, match=message):
        quick(**options)


def test_the_learning_rate_warms_up_and_then_follows_a_cosine():
    values = [learning_rate_factor(step, warmup=10, total=110) for step in range(110)]
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert values[60] == pytest.approx(0.5)
    assert values[109] == pytest.approx(0.5 * (1 + math.cos(math.pi * 99 / 100)))


def test_a_part_of_an_epoch_is_a_part_of_its_steps(monkeypatch):
    source, rates = tiny_source(), []
    steps = len(source.train_batches(16))
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *given: (rates.append(self.param_groups[0]["lr"]), step(self, *given))
    )
    record = tas.Record()
    tas.train(fresh(), source, config=quick(epochs=1.5, warmup_epochs=0.5), record=record)
    half = round(0.5 * steps)
    assert len(rates) == round(1.5 * steps)
    assert [row["epoch"] for row in record.epochs("train")] == [0, 1]
    total = len(rates)
    assert rates == pytest.approx([
        0.1 * learning_rate_factor(place, warmup=half, total=total) for place in range(total)
    ])  # fmt: skip


def test_whole_epochs_are_the_same_option_however_written():
    assert quick(epochs=2.0, warmup_epochs=1.0) == quick(epochs=2, warmup_epochs=1)
    assert repr(quick(epochs=2.0).epochs) == "2"


def test_the_record_has_a_row_per_epoch():
    record = tas.Record()
    tas.train(fresh(), tiny_source(), config=quick(), record=record, stage="teacher")
    rows = record.epochs("teacher")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert all(row["seconds"] > 0 and 0 <= row["accuracy"] <= 100 for row in rows)


def test_a_nan_loss_is_an_error_and_leaves_no_checkpoint(tmp_path):
    file = tmp_path / "train.pt"
    with pytest.raises(tas.TrainingError, match="became nan; lower its learning_rate"):
        tas.train(build_nan(), tiny_source(), config=quick(), checkpoint=file)
    assert not file.exists()


@pytest.mark.parametrize("broken", [5, 40])
def test_an_image_that_is_nan_is_blamed_itself(broken):
    with pytest.raises(tas.TrainingError, match=r"became nan; image \d+ of batch \d+ has NaN or infinite values: mend"):
        tas.train(fresh(), tiny_source(broken=broken), config=quick(batch_size=8))


def test_a_label_beyond_the_models_classes_is_an_error():
    with pytest.raises(tas.DataError, match="only 2 classes"):
        tas.train(TinyNet(2), tiny_source(), config=quick())


def test_grey_images_for_a_colour_model_are_an_error():
    source = tiny_source()
    grey = tas.data.TensorSource(source._train[0][:, :1], source._train[1], source._test[0][:, :1], source._test[1])
    with pytest.raises(tas.ModelError, match=r"does not accept inputs of shape \(16, 1, 8, 8\).*grey images"):
        tas.train(fresh(), grey, config=quick())


def test_a_loss_of_ones_own_opens_other_tasks_with_and_without_a_teacher():
    def regression(outputs, targets):
        return F.mse_loss(outputs[:, 0], targets.float())

    for teacher in (None, fresh(3)):
        record = tas.Record()
        tas.train(
            fresh(),
            tiny_source(),
            config=quick(epochs=6, learning_rate=0.02),
            teacher=teacher,
            loss=regression,
            record=record,
        )
        assert record.rows[-1]["loss"] < record.rows[0]["loss"]


def test_a_pair_of_loaders_is_data_too():
    source = tiny_source()
    loaders = [
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=16, shuffle=index == 0)
        for index, (images, labels) in enumerate([source._train, source._test])
    ]
    model = tas.train(fresh(), tuple(loaders), config=quick(epochs=15))
    assert evaluate(model, tuple(loaders)) > 80


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", 0), ("batch_size", -1), ("learning_rate", 0.0), ("teacher_weight", 1.5)]
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(tas.ConfigError, match=option):
        TrainConfig(**{option: value})


def test_stages_of_one_process_may_differ_in_their_precision():
    one = tas.train(fresh(), tiny_source(), config=quick(epochs=1))
    for precision in ("bf16", "fp16", "no"):
        other = tas.train(fresh(), tiny_source(), config=quick(epochs=1, precision=precision))
        assert other(torch.zeros(1, 3, 8, 8)).dtype == torch.float32  # nothing of the training clings to the model
        assert same(one, other) == (precision == "no")


def test_frozen_parameters_stay_and_a_wholly_frozen_model_is_refused():
    model = fresh()
    model.stem.requires_grad_(False)
    before = model.stem[0].weight.clone()
    tas.train(model, tiny_source(), config=quick(epochs=1))
    assert torch.equal(model.stem[0].weight, before)
    with pytest.raises(tas.ModelError, match=r"every parameter of TinyNet is frozen .*requires_grad_\(True\)"):
        tas.train(fresh().requires_grad_(False), tiny_source(), config=quick())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "int4"}, "'int4'; it can be no or bf16 or fp16"), ({"batch_size": 1.5}, "a whole number"),
     ({"epochs": "three"}, "epochs is 'three'; it must be a number"),
     ({"momentum": -1.0}, r"lie in \[0, 1\]"), ({"weight_decay": -1.0}, "not be negative"),
     ({"learning_rate": math.inf}, "above 0"), ({"seed": 2**70}, "seed is 1180591620717411303424; it must lie"),
     ({"compile": True, "transfer": "hints"}, "compile does not go with transfer hints"),
     ({"compile": True, "sync_batch_norm": True}, "compile does not go with sync_batch_norm")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(tas.ConfigError, match=message):
        quick(**options)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it compiles
def test_compiled_training_is_the_same_training(compiles):
    rows = []
    for compile in (False, True):
        record = tas.Record()
        student = tas.train(fresh(), tiny_source(), teacher=teacher(), config=quick(compile=compile), record=record)
        rows.append([row["loss"] for row in record.rows])
        assert list(student.state_dict()) == list(fresh().state_dict()), "what comes back is the model given"
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)
    assert len(compiles) == 2, "student and teacher, once each"


def test_what_the_compiler_cannot_do_is_said_to_be_that(monkeypatch):
    def broken(graph, inputs):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(tas.ModelError, match=r"torch\.compile failed: .*no C\+\+ compiler.*Set compile to false"):
        tas.train(fresh(), tiny_source(), config=quick(compile=True))


def test_training_on_loaders_with_randomness_of_their_own_can_be_interrupted(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        def __init__(self):
            self.images, self.labels = tiny_source()._train

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index] + random.random() + float(np.random.rand()) + torch.rand(1), int(
                self.labels[index]
            )

    def loaders():
        noisy, generator = Noisy(), torch.Generator().manual_seed(3)
        sampler = torch.utils.data.WeightedRandomSampler([1.0] * len(noisy), len(noisy), generator=generator)
        return torch.utils.data.DataLoader(noisy, 16, sampler=sampler), torch.utils.data.DataLoader(noisy, 16)

    class Interrupts(tas.Record):
        def add(self, stage, **values):
            super().add(stage, **values)
            if values.get("epoch") == 2:
                raise KeyboardInterrupt

    random.seed(5)
    state = random.getstate()
    whole = tas.train(fresh(), loaders(), config=quick())
    assert random.getstate() == state
    with pytest.raises(KeyboardInterrupt):
        tas.train(fresh(), loaders(), config=quick(), record=Interrupts(), checkpoint=tmp_path / "train.pt")
    random.seed(6)
    assert same(whole, tas.train(fresh(1), loaders(), config=quick(), checkpoint=tmp_path / "train.pt"))


class Forgetful(TinyNet):
    """Returns nothing when it is told to train, as many that keep their norms frozen."""

    def train(self, mode=True):
        super().train(mode)
        self.stem[1].eval()


def test_a_model_whose_train_returns_nothing_teaches_and_learns(tmp_path):
    teacher, forgetful = fresh(3), Forgetful()
    forgetful.load_state_dict(teacher.state_dict())
    config = quick(epochs=1, teacher_weight=1.0)
    taught, wanted = (tas.train(fresh(), tiny_source(), teacher=one, config=config) for one in (forgetful, teacher))
    assert same(taught, wanted)
    assert tas.train(forgetful, tiny_source(), config=quick(epochs=1)) is forgetful
    graph = tas.trace(forgetful, torch.zeros(1, 3, 8, 8))
    small = tas.derive(tas.rank(forgetful, graph), graph, tas.SearchSpace.of(graph).smallest)
    assert tas.measure(small, tiny_source(), seconds=0.01).macs == graph.macs(tas.SearchSpace.of(graph).smallest)


def test_the_teacher_is_left_as_it_is():
    teacher = fresh(3).to(memory_format=torch.channels_last).train()
    tas.train(fresh(), tiny_source(), teacher=teacher, config=quick(epochs=1))
    assert all(module.training for module in teacher.modules())
    assert teacher.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_accelerator_of_the_users_own_keeps_its_settings():
    from accelerate import Accelerator

    own = Accelerator(cpu=True, gradient_accumulation_steps=4)
    tas.train(fresh(), tiny_source(), config=quick(epochs=1))
    assert own.gradient_accumulation_steps == 4


class Keeping(TinyNet):
    """Keeps what it has computed, as models that show their attention."""

    def forward(self, images):
        self.last = super().forward(images)
        return self.last


def test_a_teacher_that_cannot_be_copied_is_refused_in_words():
    teacher = Keeping()
    teacher(torch.zeros(2, 3, 8, 8))
    with pytest.raises(tas.ModelError, match="the teacher Keeping cannot be copied .*call it once under torch.no_grad"):
        tas.train(fresh(), tiny_source(), teacher=teacher, config=quick(epochs=1))
    with torch.no_grad():
        teacher(torch.zeros(2, 3, 8, 8))
    tas.train(fresh(), tiny_source(), teacher=teacher, config=quick(epochs=1))


def test_labels_to_ignore_do_not_count_in_the_accuracy_of_an_epoch():
    images, labels = next(iter(tiny_source().test_batches(32)))
    model = tas.train(fresh(), tiny_source(), config=quick(epochs=15))
    labels[::2] = -100
    source = tas.data.TensorSource(images, labels, images, labels, num_classes=4)
    record = tas.Record()
    tas.train(model, source, config=quick(epochs=1, learning_rate=1e-9), record=record)
    assert record.rows[0]["accuracy"] > 90
