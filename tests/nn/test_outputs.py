from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tas.nn.outputs import difference, named_tensors, shows_something, tensors_of, with_tensors


def test_outputs_are_alike_up_to_rounding():
    outputs = [torch.randn(2, 5, 4, 4), torch.randn(2, 3), torch.tensor(2.0), torch.zeros(0, 4), torch.ones(2, 3, 1)]
    assert difference(outputs, outputs) is None
    assert difference([output * (1 + 1e-6) for output in outputs], outputs) is None
    assert difference([*outputs[:2], torch.tensor(2.1), *outputs[3:]], outputs) is not None
    assert difference(outputs[:2], outputs) == "returns 2 tensors instead of 5"


def test_every_long_row_has_its_own_measure():
    wanted = torch.rand(2, 6, 40) + 0.5
    wanted[:, 4:] *= 1e-4  # scores beside boxes
    found = wanted.clone()
    found[:, 5] *= 1.01
    assert difference([found], [wanted]) == "differs from the masked one by 1.0e-02"
    assert difference([found.mT], [wanted.mT]) is not None


def test_zeros_that_are_rounded_are_no_difference():
    wanted = torch.rand(2, 6, 40) + 0.5
    wanted[:, 5] = 0
    assert difference([wanted + 1e-11 * (wanted == 0)], [wanted]) is None


def test_what_is_not_finite_differs():
    assert difference([torch.full((2, 3), torch.nan)], [torch.ones(2, 3)]) is not None


def test_zeros_and_nothing_show_nothing():
    assert not shows_something([])
    assert not shows_something([torch.zeros(2, 3), torch.zeros(0)])
    assert not shows_something([torch.ones(2), torch.tensor(torch.inf)])
    assert shows_something([torch.zeros(2), torch.tensor([0.0, 1.0])])


class Found(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor


def test_fields_of_named_tuples_name_the_tensors():
    found = Found(torch.zeros(1), torch.ones(1))
    assert list(named_tensors(found)) == ["boxes", "scores"]
    assert list(named_tensors({"first": found, "last": (torch.ones(1),)})) == ["first_boxes", "first_scores", "last_0"]


@dataclass(frozen=True)
class Scaled:
    maps: Any
    scale: float = 2.0


class Ordered(OrderedDict):
    @property
    def first(self):
        return self["first"]


def test_other_tensors_take_the_places_of_a_nest_of_any_kind():
    a, b, c = torch.zeros(2), torch.ones(3), torch.zeros(1)
    for nest in (a, [a, [b]], (a, None, b), {"x": a, "y": {"z": (b,)}}, Found(a, b), Scaled((a, b)),
                 Ordered(first=a, second=Scaled([b, c]))):  # fmt: skip
        before = tensors_of(nest)
        new = [tensor + 5 for tensor in before]
        found = with_tensors(nest, new)
        assert type(found) is type(nest)
        assert all(one is other for one, other in zip(tensors_of(found), new, strict=True))
        assert all(one is other for one, other in zip(tensors_of(nest), before, strict=True))  # as it was
    assert with_tensors(Ordered(first=a), [b]).first is b
    assert with_tensors(Scaled((a, b)), [b, a]).scale == 2.0
    assert with_tensors((a, None, b), [b, a])[1] is None
