import copy
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from scripts import load_script
from torch import nn

from tas import data
from tas.errors import ModelError
from tas.models import load_weights

WEIGHTS = os.environ.get("TAS_WEIGHTS")
CIFAR10 = os.environ.get("TAS_CIFAR10")


def make_net(classes=4, width=3):
    return nn.Sequential(nn.Conv2d(2, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes))


def same(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.fixture
def trained():
    return make_net().state_dict()


def prefixed(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda weights: {"model": weights},
        lambda weights: {"model_state_dict": prefixed(weights, "module.")},
        lambda weights: prefixed(weights, "module."),
        lambda weights: prefixed(weights, "_orig_mod.module."),
        lambda weights: prefixed(weights, "module._orig_mod."),
        lambda weights: {"state_dict": prefixed(weights, "model."), "hyper_parameters": {"lr": 0.1}},  # Lightning's
        lambda weights: {**prefixed(weights, "module."), "n_averaged": torch.tensor(7)},  # an AveragedModel's
    ],
)
def test_the_usual_checkpoints_of_torch_are_understood(tmp_path, trained, wrap):
    torch.save(wrap(trained), tmp_path / "weights.pt")
    model = make_net()
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, trained)


@pytest.mark.parametrize(
    ("wrap", "beside"),
    [
        (lambda mean, last: {"state_dict": last, "state_dict_ema": mean, "epoch": 3}, "state_dict"),  # timm's
        (lambda mean, last: {"model": last, "model_ema": {**prefixed(mean, "module."), "n_averaged": torch.tensor(7)}},
         "model"),  # torchvision's
        (lambda mean, last: {"model_state_dict": last, "ema": mean}, "model_state_dict"),
    ],
)  # fmt: skip
def test_averaged_weights_are_preferred_as_timm_does_and_the_user_hears_of_it(tmp_path, trained, wrap, beside):
    content = wrap(trained, make_net().state_dict())
    torch.save(content, tmp_path / "weights.pt")
    model = make_net()
    with pytest.warns(UserWarning, match=f"weights.pt has averaged weights .* beside those of {beside}; the averaged"):
        load_weights(model, tmp_path / "weights.pt")
    assert same(model, trained)
    if "model_ema" in content or "state_dict_ema" in content:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.jit, in old versions
            from timm.models import load_checkpoint

        theirs = make_net()
        content.get("model_ema", {}).pop("n_averaged", None)  # which timm does not know
        torch.save(content, tmp_path / "weights.pt")
        load_checkpoint(theirs, str(tmp_path / "weights.pt"))
        assert same(theirs, trained)


@pytest.mark.parametrize("average", [None, {"decay": 0.9, "shadow": torch.zeros(3)}])
def test_averages_of_another_kind_are_left_aside(tmp_path, trained, average):
    torch.save({"state_dict_ema": average, "ema": average, "model": trained}, tmp_path / "weights.pt")
    model = make_net()
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, trained)


def test_safetensors_are_read(tmp_path, trained):
    save_file(trained, tmp_path / "weights.safetensors")
    model = make_net()
    load_weights(model, str(tmp_path / "weights.safetensors"))
    assert same(model, trained)


def test_a_users_submodule_called_module_keeps_its_name(tmp_path):
    trained, model = nn.ModuleDict({"module": make_net()}), nn.ModuleDict({"module": make_net()})
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, trained.state_dict())


def test_a_prefix_goes_also_where_some_names_would_fit_with_it(tmp_path):
    parts = {"0": nn.Linear(2, 2), "module": nn.Sequential(nn.Linear(2, 2))}
    trained, model = nn.ModuleDict(parts), copy.deepcopy(nn.ModuleDict(parts))
    nn.init.ones_(trained["0"].weight)
    torch.save({f"module.{name}": value for name, value in trained.state_dict().items()}, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, trained.state_dict())


def test_old_files_without_batch_counters_are_accepted(tmp_path, trained):
    torch.save({k: v for k, v in trained.items() if "num_batches" not in k}, tmp_path / "weights.pt")
    model = make_net()
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, trained)


def refuse(tmp_path, content, message, model=None):
    """Check the message, that it is one line, and that the model is as it was."""
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    model = model or make_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert same(model, before)


def test_missing_and_unexpected_names_are_listed(tmp_path, trained):
    trained["4.weight"] = trained.pop("3.weight")
    message = (
        r"weights\.pt belong to another model: 1 missing \(3\.weight\); 1 unexpected \(4\.weight\); load the model"
    )
    refuse(tmp_path, trained, message)


def test_only_the_first_names_are_listed(tmp_path):
    refuse(tmp_path, {"a": torch.zeros(1)}, r"8 missing \(0\.weight, 0\.bias, 1\.weight, …\)")


def test_another_number_of_classes_hints_at_num_classes(tmp_path):
    message = (
        r"2 shapes .* do not fit: 3\.weight \(7, 3\) in the file, \(4, 3\) in the model; .*; pass num_classes=7, or"
    )
    refuse(tmp_path, make_net(classes=7).state_dict(), message)


def test_other_widths_do_not_hint_at_num_classes(tmp_path):
    message = r"0\.weight \(5, 2, 1, 1\) in the file, \(3, 2, 1, 1\) in the model; .*; …; load the model they are of$"
    refuse(tmp_path, make_net(width=5).state_dict(), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, no weights"),
        ({}, "holds nothing, no weights"),
        (
            {"epoch": 3, "weights": {"a": torch.zeros(1)}},
            r"holds more than weights \(epoch, weights\); keep the weights",
        ),
        (
            make_net(),
            r"Python objects which are not loaded for safety; write it with torch\.save\(model\.state_dict\(\)",
        ),
    ],
)
def test_files_of_something_else_say_what_to_save(tmp_path, content, message):
    refuse(tmp_path, content, message)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize("content", [b"", b"no weights at all", pickle.dumps({"a": 1}), pickle.dumps(Trap())])
def test_files_that_are_no_weights_are_refused_and_not_executed(tmp_path, content):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.pt .*write it with torch\.save\(model\.state_dict\(\), path\)"):
        load_weights(make_net(), tmp_path / "weights.pt")


def test_a_damaged_safetensors_file_is_named(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\x01" * 30)
    with pytest.raises(ModelError, match=r"weights\.safetensors is not a safetensors file"):
        load_weights(make_net(), tmp_path / "weights.safetensors")


def test_a_missing_file_of_weights_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no file of weights .*nowhere\.pt; check the path"):
        load_weights(make_net(), tmp_path / "nowhere.pt")


@pytest.mark.skipif(not WEIGHTS, reason="set TAS_WEIGHTS to the folder of the public CIFAR-10 weights")
@pytest.mark.skipif(not CIFAR10, reason="set TAS_CIFAR10 to an unpacked folder with train/ and test/")
@pytest.mark.parametrize(("name", "published"), [("resnet20", 0.9173), ("resnet32", 0.9263)])
def test_strangers_resnets_reach_about_their_published_accuracy(name, published, tmp_path):
    for part, count in (("train", 1), ("test", 60)):
        for label in (Path(CIFAR10) / part).iterdir():
            (tmp_path / part / label.name).mkdir(parents=True)
            for image in sorted(os.listdir(label))[:count]:
                (tmp_path / part / label.name / image).symlink_to((label / image).resolve())
    source = data.load(f"folder:{tmp_path}", workers=0)
    public = load_script("public_resnet")
    model = getattr(public, name)().eval()
    load_weights(model, Path(WEIGHTS) / f"cifar10_{name}_optionA.safetensors")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (public.MEAN, public.STD))
    correct = 0
    with torch.no_grad():
        for inputs, targets in source.test_batches(200):
            pixels = inputs * source.std + source.mean
            logits = model((pixels - mean) / std)
            correct += (logits.argmax(1) == targets).sum().item()
    assert correct / 600 == pytest.approx(published, abs=0.035)  # three standard errors of 600 images


@pytest.mark.parametrize("content", [b"some text\n", b"", b"\x80\x02}q\x01(X\x01", bytes(range(256))])
def test_a_file_that_is_no_checkpoint_is_refused_whatever_is_in_it(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelError, match="is not a plain file of weights"):
        load_weights(make_net(), tmp_path / "x.pt")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight


def test_of_tied_weights_one_suffices(tmp_path):
    saved, loaded = Tied(), Tied()
    save_model(saved, str(tmp_path / "x.safetensors"))
    load_weights(loaded, tmp_path / "x.safetensors")
    assert same(loaded, saved.state_dict())
