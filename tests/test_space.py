import pytest
import torch

from tas.architecture import Architecture
from tas.errors import ConfigError
from tas.graph import Depth, Graph, Width
from tas.space import SearchSpace, depth_candidates, width_candidates

GRAPH = Graph((Width("a", 16, ()), Width("b", 3, ())), (Depth("d", ("0", "1", "2", "3", "4")),), ())


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (16, (4, 6, 8, 9, 11, 12, 14, 16)),
        (32, (9, 12, 16, 19, 22, 25, 28, 32)),
        (64, (19, 25, 32, 38, 44, 51, 57, 64)),
        (10, (3, 4, 5, 6, 7, 8, 9, 10)),
        (2, (1, 2)),
    ],
)
def test_widths_get_the_candidates_of_the_paper(size, wanted):
    assert width_candidates(size) == wanted


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (5, (1, 3, 5)),
        (6, (1, 3, 5, 6)),
        (9, (1, 3, 5, 7, 9)),
        (18, (*range(1, 19, 2), 18)),
    ],
)
def test_depths_get_the_candidates_of_the_paper(blocks, wanted):
    assert depth_candidates(blocks) == wanted


def test_a_space_offers_every_width_and_depth_its_candidates():
    space = SearchSpace.of(GRAPH)
    assert space.widths == {"a": width_candidates(16), "b": (1, 2, 3)}
    assert space.depths == {"d": (1, 3, 5)}
    assert space.num_architectures == 8 * 3 * 3
    assert space.largest == Architecture({"a": 16, "b": 3}, {"d": 5}) == GRAPH.full
    assert space.smallest == Architecture({"a": 4, "b": 1}, {"d": 1})


def test_what_is_not_chosen_keeps_its_full_size():
    assert SearchSpace.of(GRAPH, choose="width").depths == {"d": (5,)}
    assert SearchSpace.of(GRAPH, choose="depth").widths == {"a": (16,), "b": (3,)}


def test_other_ratios_always_leave_the_full_size():
    assert SearchSpace.of(GRAPH, ratios=(0.25, 0.5)).widths == {"a": (4, 8, 16), "b": (1, 3)}


def test_samples_are_candidates_uniform_and_repeatable():
    space, draws = SearchSpace.of(GRAPH), 3000
    one, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    first = [space.sample(one) for _ in range(draws)]
    assert first == [space.sample(other) for _ in range(draws)]
    assert all(architecture in space for architecture in first)
    for candidates, sizes in (
        (space.widths["a"], [a.widths["a"] for a in first]),
        (space.depths["d"], [a.depths["d"] for a in first]),
    ):
        expected = draws / len(candidates)
        chi_square = sum((sizes.count(size) - expected) ** 2 / expected for size in candidates)
        assert chi_square < 30  # 7 degrees of freedom: one in ten thousand is above


def test_sampling_without_a_generator_follows_the_seed_of_torch():
    space = SearchSpace.of(GRAPH)
    torch.manual_seed(3)
    one = [space.sample() for _ in range(5)]
    torch.manual_seed(3)
    assert one == [space.sample() for _ in range(5)]


def test_membership_asks_for_names_and_candidates():
    space = SearchSpace.of(GRAPH)
    assert space.smallest in space
    assert Architecture({"a": 5, "b": 1}, {"d": 1}) not in space
    assert Architecture({"a": 4, "b": 1}, {"d": 2}) not in space
    assert Architecture({"a": 4}, {"d": 1}) not in space
    assert Architecture({"a": 4, "b": 1}) not in space


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_candidates_out_of_order_or_range_are_refused_by_name(sizes):
    with pytest.raises(ConfigError, match="candidates of 'a' are .*; give ascending whole numbers of at least 1"):
        SearchSpace({"a": sizes}, {})
    with pytest.raises(ConfigError, match="candidates of 'd'"):
        SearchSpace({}, {"d": sizes})


@pytest.mark.parametrize("ratios", [(), (0.0,), (1.5,), (-0.5, 0.5), (float("nan"),)])
def test_ratios_out_of_range_are_refused(ratios):
    with pytest.raises(ConfigError, match="ratios are .*; give shares above 0 and up to 1"):
        SearchSpace.of(GRAPH, ratios=ratios)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match="choose is 'all'; it can be both, width or depth"):
        SearchSpace.of(GRAPH, choose="all")  # type: ignore[arg-type]
