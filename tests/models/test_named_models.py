import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tas import models
from tas.errors import ModelError


def test_our_networks_are_loaded_by_depth_and_classes():
    model = models.load("cifar_resnet:20", num_classes=7)
    assert isinstance(model, models.CifarResNet)
    assert model.linear.out_features == 7
    assert models.load("cifar_resnet:20").linear.out_features == 10


@pytest.mark.parametrize("depth", ["18", "twenty", "-20", "2.0"])
def test_another_depth_lists_the_choices_by_name(depth):
    with pytest.raises(ModelError, match="choose one of 20, 32, 44, 56, 110, 164"):
        models.load(f"cifar_resnet:{depth}")


def test_our_networks_have_no_released_weights():
    with pytest.raises(ModelError, match="has no released weights; train it, or pass a file with weights="):
        models.load("cifar_resnet:20", pretrained=True)


def test_torchvision_models_get_the_number_of_classes():
    assert models.load("torchvision:squeezenet1_1", num_classes=3).classifier[1].out_channels == 3
    assert models.load("torchvision:squeezenet1_1").classifier[1].out_channels == 1000


def test_an_unknown_torchvision_model_names_close_ones():
    with pytest.raises(ModelError, match="torchvision has no model 'resnet5'; did you mean torchvision:resnet50"):
        models.load("torchvision:resnet5")


def test_released_torchvision_weights_with_other_classes_say_what_to_leave_out():
    with pytest.raises(ModelError, match=r"cannot be built \(.*1000.*\); leave num_classes or pretrained out"):
        models.load("torchvision:squeezenet1_1", num_classes=3, pretrained=True)


def test_weights_that_cannot_be_fetched_are_an_error_of_ours(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ModelError, match=r"cannot be built \(no network\)"):
        models.load("torchvision:squeezenet1_1", pretrained=True)


def test_timm_models_get_the_number_of_classes():
    pytest.importorskip("timm")
    model = models.load("timm:test_resnet", num_classes=3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_an_unknown_timm_model_names_close_ones():
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"timm has no model 'resnet_50'; did you mean .*timm:resnet50"):
        models.load("timm:resnet_50")


def test_timm_models_that_cannot_be_built_say_why(monkeypatch):
    pytest.importorskip("timm")

    def fail(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(ModelError, match=r"timm:test_resnet cannot be built \(out of luck\); check num_classes"):
        models.load("timm:test_resnet")


@pytest.mark.parametrize("name", ["cifar_resnet:20", "torchvision:resnet18", "timm:resnet18"])
def test_less_than_one_class_is_refused(name):
    with pytest.raises(ModelError, match="at least 1 class, got num_classes=0"):
        models.load(name, num_classes=0)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm, which is missing; pip install tas-pruning\[zoo\]"):
        models.load("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet50", "did you mean torchvision:resnet50"),
        ("cifar_resnet20", "did you mean cifar_resnet:20"),
        ("net.py", "did you mean net.py:FUNCTION"),
        ("cifar_resnet:", "write it as one of cifar_resnet:DEPTH, torchvision:NAME"),
        (":build", "write it as one of"),
    ],
)
def test_a_name_of_no_known_form_lists_the_forms_and_guesses(name, hint):
    with pytest.raises(ModelError, match=hint):
        models.load(name)


def test_nothing_is_executed_for_a_name_without_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("raise SystemExit('executed')")
    for name in ("trap", "trap.py", str(tmp_path / "trap.py")):
        with pytest.raises(ModelError, match="there is no model"):
            models.load(name)
    assert "trap" not in sys.modules


def test_weights_are_loaded_into_the_model(tmp_path):
    trained = models.cifar_resnet(20)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    loaded = models.load("cifar_resnet:20", weights=tmp_path / "weights.pt")
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))


def test_hugging_face_models_are_built_by_type_with_the_number_of_classes():
    pytest.importorskip("transformers")
    model = models.load("transformers:mobilenet_v1", num_classes=3)
    assert model.training
    assert model(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 3)


def test_a_hugging_face_type_of_several_classifiers_is_the_plain_one():
    transformers = pytest.importorskip("transformers")
    assert type(models.load("transformers:deit")) is transformers.DeiTForImageClassification


@pytest.fixture
def saved_resnet(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet", model


def test_hugging_face_models_are_built_from_a_folder_with_or_without_its_weights(saved_resnet):
    folder, model = saved_resnet
    images = torch.randn(2, 3, 32, 32)
    wanted = model.eval()(images).logits
    for pretrained in (True, False):
        found = models.load(f"transformers:{folder}", num_classes=3, pretrained=pretrained).eval()(images).logits
        assert torch.equal(found, wanted) == pretrained


def test_a_hugging_face_model_with_other_classes_gets_a_fresh_classifier(saved_resnet):
    folder, model = saved_resnet
    found = models.load(f"transformers:{folder}", num_classes=5, pretrained=True)
    assert found(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 5)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(found.state_dict()[stem], model.state_dict()[stem])


def test_a_hugging_face_model_that_is_not_there_says_so(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelError, match="cannot be built"):
        models.load(f"transformers:{tmp_path}/nothing")


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"transformers, which is missing; pip install tas-pruning\[zoo\]"):
        models.load("transformers:resnet")


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({}, (3, 224, 224)),
        ({"pretrained_cfg": {"input_size": (3, 299, 299)}}, (3, 299, 299)),
        ({"pretrained_cfg": None, "config": {"image_size": 64}}, (3, 224, 224)),
        ({"config": SimpleNamespace(image_size=[32, 48], num_channels=1)}, (1, 32, 48)),
        ({"config": SimpleNamespace(image_size=None, vision_config=SimpleNamespace(image_size=96))}, (3, 96, 96)),
    ],
)
def test_the_input_size_is_what_a_model_says_and_else_that_of_imagenet(said, size):
    model = nn.Conv2d(3, 4, 1)
    vars(model).update(said)
    assert models.own_input_size(model) == size


def test_the_classes_that_a_model_was_released_for_are_known_where_others_are_taken(saved_resnet):
    pytest.importorskip("timm")
    folder, model = saved_resnet
    name = f"transformers:{folder}"
    known = {name: 3, "timm:test_resnet": 1000, "timm:nothing": None, "torchvision:resnet18": None}
    assert {one: models.released_classes(one) for one in known} == known
    model.resnet.save_pretrained(folder)  # without the classifier
    assert models.released_classes(name) == 0
