import pytest
import torch

from tas.nn.labels import FIXED, Labels, fixed, spread, varying_dims


def test_labels_are_fresh_and_ascending():
    labels = Labels()
    assert labels.fresh(3).tolist() == [1, 2, 3]
    assert labels.fresh(2).tolist() == [4, 5]


def test_a_union_is_named_by_its_smallest_label():
    labels = Labels()
    one, two, three = labels.fresh(2), labels.fresh(2), labels.fresh(2)
    labels.union(three, two)
    labels.union(two, one)
    assert labels.roots().tolist() == [0, 1, 2, 1, 2, 1, 2]


def test_a_union_broadcasts_and_merges_position_by_position():
    labels = Labels()
    one, other = labels.fresh(3), labels.fresh(3)
    labels.union(spread(one, 1, (2, 3, 4, 4)), other.view(1, 3, 1, 1))
    assert labels.roots()[1:].tolist() == [1, 2, 3, 1, 2, 3]


def test_a_union_with_what_is_no_channel_freezes():
    labels = Labels()
    mixed = torch.tensor([FIXED, 0, 0])
    labels.union(labels.fresh(3), mixed, "here")
    assert labels.freezes[0].labels.tolist() == [1, 2, 3]
    assert labels.freezes[0].module == "here"
    assert labels.roots().tolist() == [0, 1, 2, 3]  # they are not merged with each other


def test_attaching_an_axis_twice_merges():
    labels = Labels()
    one, other = labels.fresh(2), labels.fresh(2)
    labels.attach("w", 0, one)
    labels.attach("w", 0, other)
    assert labels.roots()[1:].tolist() == [1, 2, 1, 2]


def test_freezing_what_is_no_channel_says_nothing():
    labels = Labels()
    labels.freeze(fixed((2, 3)), "reason", "module")
    assert labels.freezes == []


def test_a_channel_vector_merges_what_differs_along_other_dimensions():
    labels = Labels()
    made = labels.fresh(6).view(2, 3)
    assert labels.channel_vector(made, 1).tolist() == [1, 2, 3]
    assert labels.roots()[1:].tolist() == [1, 2, 3, 1, 2, 3]


def test_a_channel_vector_of_an_ordinary_tensor_merges_nothing():
    labels = Labels()
    made = labels.fresh(3)
    assert torch.equal(labels.channel_vector(spread(made, 1, (2, 3, 4)), 1), made)
    assert labels.roots().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("dim", "shape"), [(1, (2, 3, 4, 4)), (0, (3, 2)), (2, (1, 1, 3))])
def test_labels_vary_only_along_their_own_dimension(dim, shape):
    assert varying_dims(spread(torch.tensor([5, 6, 7]), dim, shape)) == [dim]
    assert varying_dims(spread(torch.tensor([5, 6, 7]), dim, shape).contiguous()) == [dim]
    assert varying_dims(fixed(shape)) == []
