"""What a model must be."""

import pytest
import torch
from torch import nn
from toys import TinyNet, tiny_source

import tas
from tas.errors import ModelError
from tas.nn.modes import require_module, require_trainable

EXAMPLE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (TinyNet, r"the model is TinyNet itself, no torch\.nn\.Module; pass what it builds, TinyNet\(…\)"),
        (TinyNet().state_dict(), r"a OrderedDict, no torch\.nn\.Module; build it, and load these into it"),
        ("resnet18", r"a str, no torch\.nn\.Module; pass the model"),
    ],
)
def test_what_is_no_model_is_refused_with_the_way_out(given, message, tmp_path):
    verbs = (require_module, lambda one: tas.trace(one, EXAMPLE), lambda one: tas.measure(one, example=EXAMPLE))
    for verb in (
        *verbs,
        lambda one: tas.load(tmp_path, one),
        lambda one: tas.compress(one, tiny_source()),
        lambda one: tas.train(one, tiny_source()),
    ):
        with pytest.raises(ModelError, match=message):
            verb(given)


def test_sparse_gradients_are_refused_with_the_way_out():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="0 has sparse gradients .*; set its sparse to False, which computes the same"):
        require_trainable(model)
    model[0].sparse = False
    require_trainable(model)
