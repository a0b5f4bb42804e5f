"""Measured facts are facts."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import TinyNet, tiny_source

import tas
from tas import timing
from tas.pipeline.measure import count_macs, evaluate, measure_latency, measure_side_by_side


def test_multiply_adds_are_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 4, 7))
    assert count_macs(model, torch.zeros(2, 3, 8, 8)) == 5 * 3 * 9 * 16 + 80 * 7


def test_an_lstm_is_counted_though_it_is_one_kernel():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm = nn.Conv2d(3, 5, 3, padding=1), nn.LSTM(5, 4, batch_first=True)

        def forward(self, images):
            return self.lstm(self.conv(images).mean(3).transpose(1, 2))[0][:, -1]

    model, example = Recurrent(), torch.zeros(2, 3, 8, 8)
    macs = 5 * 3 * 9 * 64 + 8 * 4 * 4 * (5 + 4)
    assert count_macs(model, example) == macs
    assert tas.trace(model, example[:1]).macs() == macs


def test_what_looks_at_values_is_counted_as_it_runs():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, images):
            return self.conv(images) if float(images.sum()) == 0 else images

    assert count_macs(Looking(), torch.zeros(2, 3, 8, 8)) == 5 * 3 * 64


def test_accuracy_is_the_percentage_of_right_classes():
    class Oracle(nn.Module):
        """Right for classes 0 and 1, says 0 otherwise."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            quarters = images.mean(1).unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4)).flatten(1) * self.scale
            found = quarters.argmax(1)
            return nn.functional.one_hot(torch.where(found < 2, found, 0), 4).float()

    source = tiny_source()
    labels = torch.cat([targets for _, targets in source.test_batches(16)])
    wanted = 100 * float((labels < 2).float().mean())
    assert evaluate(Oracle(), source, batch_size=7) == pytest.approx(wanted, abs=1e-3)


def test_a_metric_of_ones_own_is_averaged_over_samples():
    source = tiny_source()
    count = sum(len(targets) for _, targets in source.test_batches(16))
    found = evaluate(TinyNet(), source, metric=lambda outputs, targets: targets.float().mean(), batch_size=5)
    labels = torch.cat([targets for _, targets in source.test_batches(16)])
    assert len(labels) == count
    assert found == pytest.approx(float(labels.float().mean()), abs=1e-3)


def test_a_larger_network_takes_longer():
    small, large = nn.Conv2d(3, 4, 3), nn.Sequential(*[nn.Conv2d(3, 3, 7, padding=3) for _ in range(40)])
    (fast, spread), (slow, _) = measure_latency([small, large], torch.zeros(1, 3, 32, 32), seconds=0.1)
    assert 0 < fast < slow
    assert spread >= 0


def test_what_disturbs_some_turns_can_be_left_out(monkeypatch):
    turns = [[5.0, 5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0], [2.5]]

    class Timer:
        def __init__(self, *_):
            self.left = iter(turns)

        def adaptive_autorange(self, **_):
            return SimpleNamespace(times=next(self.left))

    monkeypatch.setattr(timing, "_timer", Timer)
    model, example = nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 8, 8)
    assert measure_latency([model], example, rounds=3) == [(5000.0, 2500.0)]
    assert measure_latency([model], example, rounds=3, undisturbed=True) == [(2000.0, 1000.0)]


def test_a_profile_holds_everything():
    model = TinyNet()
    profile = tas.measure(model, tiny_source(), seconds=0.05)
    assert profile.params == sum(parameter.numel() for parameter in model.parameters())
    assert profile.macs == tas.trace(model, torch.zeros(1, 3, 8, 8)).macs()
    assert 0 <= profile.accuracy <= 100
    assert profile.to_dict().keys() >= {"macs", "params", "accuracy", "latency_ms"}


def test_without_data_there_is_no_accuracy_and_without_both_there_is_an_error():
    assert tas.measure(TinyNet(), example=torch.zeros(1, 3, 8, 8), seconds=0.01).accuracy is None
    with pytest.raises(tas.DataError, match="needs data or an example"):
        tas.measure(TinyNet())


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_an_example_that_does_not_fit_is_an_error(runtime):
    with pytest.raises(tas.ModelError, match=r"does not accept inputs of shape \(1, 1, 8, 8\)"):
        tas.measure(TinyNet(), example=torch.zeros(1, 1, 8, 8), runtime=runtime)


def test_what_accuracy_cannot_judge_needs_a_metric():
    class Named(TinyNet):
        def forward(self, images):
            return {"scores": super().forward(images)}

    with pytest.raises(tas.DataError, match="give your own metric="):
        evaluate(Named(), tiny_source())
    assert evaluate(Named(), tiny_source(), metric=lambda outputs, targets: outputs["scores"].shape[1]) == 4


def test_a_model_with_too_few_classes_is_not_measured():
    with pytest.raises(tas.DataError, match="the data has a label 3, the model only 2 classes"):
        evaluate(TinyNet(2), tiny_source())


def test_senseless_options_are_refused():
    for options, message in (
        ({"latency_batch": 0}, "latency_batch is 0; it must be at least 1"),
        ({"latency_batch": [4, -1]}, "latency_batch is -1; it must be at least 1"),
        ({"latency_batch": []}, "latency_batch names no batch size"),
        ({"seconds": 0.0}, "seconds is 0.0; it must be above 0"),
        ({"threads": -1}, "threads is -1; it must not be negative"),
        ({"runtime": "tensorrt"}, "runtime is 'tensorrt'; it can be pytorch or onnxruntime"),
    ):
        with pytest.raises(tas.ConfigError, match=message):
            tas.measure(TinyNet(), tiny_source(), **options)


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_either_runtime_is_timed_at_every_batch_size_with_the_threads_asked_for(runtime):
    torch.manual_seed(0)
    model, source, before = TinyNet(), tiny_source(), torch.get_num_threads()
    profile = tas.measure(model, source, runtime=runtime, threads=2, latency_batch=[1, 64], seconds=0.1)
    assert torch.get_num_threads() == before
    assert (profile.runtime, profile.threads) == (runtime, 2)
    assert profile.device
    one, many = profile.timings
    assert (one.batch_size, many.batch_size) == (1, 64)
    assert min(one.latency_ms, many.latency_ms) > 0
    assert (profile.batch_size, profile.latency_ms) == (1, one.latency_ms)
    assert profile.accuracy == evaluate(model, source)
    assert profile.macs == count_macs(model, torch.zeros(1, 3, 8, 8))


def test_models_side_by_side_are_those_measured_alone_but_for_the_clock():
    torch.manual_seed(0)
    models, source = [TinyNet(), TinyNet(width=16)], tiny_source()
    for model, found in zip(models, measure_side_by_side(models, source, seconds=0.01), strict=True):
        alone = tas.measure(model, source, seconds=0.01)
        assert (alone.macs, alone.params, alone.accuracy) == (found.macs, found.params, found.accuracy)
        assert "timings" not in found.to_dict()


def test_a_metric_of_ones_own_is_not_rounded():
    def quality(outputs, targets):
        return torch.tensor(-2.5e-5)

    assert evaluate(TinyNet(), tiny_source(), metric=quality) == pytest.approx(-2.5e-5)


def test_the_accuracy_is_of_all_labels_that_count_whatever_the_batches():
    class Always(nn.Module):
        """Says class 0."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return torch.tensor([1.0, 0.0]).expand(len(images), 2) + self.weight

    images, labels = torch.zeros(6, 3, 4, 4), torch.tensor([0, 0, 1, -100, -100, 0])
    source = tas.data.TensorSource(images, labels, images, labels, num_classes=2)
    assert evaluate(Always(), source, batch_size=3) == 75.0
    nothing = tas.data.TensorSource(images, labels, images, torch.full((6,), -100), num_classes=2)
    with pytest.raises(tas.DataError, match="every label of the test set .* is one to ignore"):
        evaluate(Always(), nothing)


def test_models_on_different_devices_are_not_compared():
    models = TinyNet(), TinyNet().to("meta")
    with pytest.raises(tas.ConfigError, match="the models lie on cpu and meta, whose times do not compare"):
        measure_side_by_side(models, example=torch.zeros(1, 3, 8, 8))
