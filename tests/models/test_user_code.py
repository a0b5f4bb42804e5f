import sys

import pytest

from tas import models
from tas.errors import ModelError

CODE = """
import neighbour_of_net
from torch import nn

def build(num_classes=4):
    return nn.Linear(2, num_classes)

def anything(**options):
    return nn.Linear(2, options["num_classes"])

def fixed():
    return nn.Linear(2, 9)

def released(pretrained=False):
    return nn.Linear(2, 5 if pretrained else 6)

class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 8)

def wrong():
    return "a model"

def failing():
    raise RuntimeError("out of luck\\nand more")

def demanding(width):
    return nn.Linear(2, width)
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "neighbour_of_net", raising=False)
    (tmp_path / "neighbour_of_net.py").write_text("")
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    ("function", "num_classes", "outputs"),
    [("build", 3, 3), ("build", None, 4), ("anything", 5, 5), ("fixed", 3, 9), ("Net", 3, 8), ("released", None, 6)],
)
def test_a_function_of_a_file_is_called_with_the_classes_it_takes(net, function, num_classes, outputs):
    assert models.load(f"{net}:{function}", num_classes=num_classes).out_features == outputs


def test_pretrained_reaches_a_function_that_takes_it(net):
    assert models.load(f"{net}:released", pretrained=True).out_features == 5
    with pytest.raises(ModelError, match="fixed has no argument `pretrained`; add it, or pass a file"):
        models.load(f"{net}:fixed", pretrained=True)


def test_a_function_of_a_module_in_the_current_folder_is_called(tmp_path, monkeypatch):
    (tmp_path / "zoo_of_user").mkdir()
    (tmp_path / "zoo_of_user" / "nets.py").write_text("from torch import nn\ndef build(): return nn.Linear(1, 2)")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert models.load("zoo_of_user.nets:build", num_classes=7).out_features == 2
    assert sys.path == path


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("biuld", r"net\.py has no function biuld; did you mean build\?"),
        ("xyz", r"net\.py has no function xyz; define a function of this name"),
        ("CODE", r"has no function CODE"),
        ("wrong", r"net\.py:wrong returned a str, not a torch\.nn\.Module; return the model"),
        ("failing", r"net\.py:failing raised RuntimeError: out of luck; it is called with no arguments"),
        ("demanding", r"net\.py:demanding raised TypeError: .*width"),
    ],
)
def test_a_function_that_gives_no_model_is_named_with_its_file(net, function, message):
    with pytest.raises(ModelError, match=message):
        models.load(f"{net}:{function}", num_classes=3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*nowhere\.py .*check the path"):
        models.load(f"{tmp_path / 'nowhere.py'}:build")


def test_a_file_that_cannot_be_imported_is_named_with_the_reason(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere")
    with pytest.raises(ModelError, match=r"cannot import .*broken\.py \(ModuleNotFoundError: .*; mend it"):
        models.load(f"{tmp_path / 'broken.py'}:build")
    (tmp_path / "broken.py").write_text("def build(:")
    with pytest.raises(ModelError, match=r"cannot import .*broken\.py \(SyntaxError"):
        models.load(f"{tmp_path / 'broken.py'}:build")


def test_a_missing_module_says_what_names_start_with():
    with pytest.raises(ModelError, match=r"cannot import torchvison .*a model's name starts with cifar_resnet"):
        models.load("torchvison:resnet50")
