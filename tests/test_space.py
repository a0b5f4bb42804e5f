from itertools import product

import pytest
import torch

from tas.architecture import Architecture
from tas.errors import ConfigError
from tas.graph import Depth, Graph, Layer, Parameter, Run, Width
from tas.space import PAPER_RATIOS, SearchSpace, SpaceConfig, depth_candidates

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
    assert SearchSpace.of(Graph((Width("a", size, ()),), (), ())).widths == {"a": wanted}


def whole_parts(size):
    return tuple(sorted({max(1, int(ratio * size + 1e-9)) for ratio in PAPER_RATIOS}))


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
    assert space.widths == {"a": whole_parts(16), "b": (1, 2, 3)}
    assert space.depths == {"d": (1, 3, 5)}
    assert space.num_architectures == 8 * 3 * 3
    assert space.largest == Architecture({"a": 16, "b": 3}, {"d": 5}) == GRAPH.full
    assert space.smallest == Architecture({"a": 4, "b": 1}, {"d": 1})


def test_what_is_not_chosen_keeps_its_full_size():
    assert SearchSpace.of(GRAPH, choose="width").depths == {"d": (5,)}
    assert SearchSpace.of(GRAPH, choose="depth").widths == {"a": (16,), "b": (3,)}


def test_other_ratios_always_leave_the_full_size():
    assert SearchSpace.of(GRAPH, ratios=(0.25, 0.5)).widths == {"a": (4, 8, 16), "b": (1, 3)}
    assert SearchSpace.of(GRAPH, ratios=(0.5, 1)).widths == {"a": (8, 16), "b": (1, 3)}


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
    with pytest.raises(ConfigError, match="choose is 'all'; it can be both or width or depth"):
        SearchSpace.of(GRAPH, choose="all")


def of_size(size: int, **options) -> tuple[int, ...]:
    return SearchSpace.of(Graph((Width("a", size, ()),), (), ()), **options).widths["a"]


@pytest.mark.parametrize("round_to", [1, 4, 8, 10, 64])
@pytest.mark.parametrize("size", [1, 3, 12, 16, 20, 100, 512])
def test_candidates_are_the_nearest_multiples_and_the_full_size(size, round_to):
    found = of_size(size, round_to=round_to)
    assert found[-1] == size
    assert all(candidate % round_to == 0 for candidate in found[:-1])
    for wanted in whole_parts(size):
        nearest = min(found, key=lambda candidate: abs(candidate - wanted))
        assert abs(nearest - wanted) <= max(round_to / 2, min(round_to, size) - wanted)
    assert round_to > 1 or found == whole_parts(size)


def test_the_candidates_of_64_channels_in_steps_of_8():
    assert of_size(64, round_to=8) == (16, 24, 32, 40, 48, 56, 64)  # 19 25 32 38 44 51 57 64, rounded


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("minimum", [1, 5, 16, 24, 600])
@pytest.mark.parametrize("size", [3, 16, 20, 512])
def test_no_width_falls_below_the_minimum_unless_it_is_smaller_itself(size, minimum, round_to):
    found = of_size(size, minimum=minimum, round_to=round_to)
    assert found[0] >= min(minimum, size)
    assert all(candidate % round_to == 0 for candidate in found[:-1])


def heads(repeat: int, copies: int, channels: int = 12) -> Graph:
    """A width of which each channel fills `repeat` outputs, `copies` times, beside a vector with one per channel."""
    layout = (Run("a", 0, channels, repeat),) * copies
    scale = Parameter("a.scale", (channels,), ((Run("a", 0, channels),),))
    weight = Parameter("a.weight", (channels * repeat * copies, 7), (layout, None))
    return Graph((Width("a", channels, ("a",)),), (), (Layer("a", "linear", (scale, weight)),))


@pytest.mark.parametrize(("repeat", "copies"), [(64, 1), (64, 3), (4, 3), (3, 1), (1, 32), (1, 1)])
def test_a_head_or_a_channel_per_group_counts_as_the_outputs_it_fills(repeat, copies):
    filled = repeat * copies
    rounded = SearchSpace.of(heads(repeat, copies), round_to=8).widths["a"]
    assert all(size * filled % 8 == 0 for size in rounded[:-1])
    if filled % 8 == 0:
        assert rounded == whole_parts(12)
    least = SearchSpace.of(heads(repeat, copies), minimum=24).widths["a"][0]
    assert least * filled >= min(24, 12 * filled)
    assert least == max(whole_parts(12)[0], min(12, -(-24 // filled)))


def test_listed_sizes_are_whole_numbers_and_shares_and_the_full_size():
    space = SearchSpace.of(GRAPH, candidates={"a": [3, 0.5, "75%"], "d": [2, "80%"]})
    assert space.widths == {"a": (3, 8, 12, 16), "b": (1, 2, 3)}
    assert space.depths == {"d": (2, 4, 5)}
    assert SearchSpace.of(GRAPH, candidates={"a": [], "d": [1.0]}).largest == GRAPH.full
    assert SearchSpace.of(GRAPH, candidates={"a": [], "d": [1.0]}).depths == {"d": (5,)}


def test_the_first_pattern_that_matches_counts():
    assert SearchSpace.of(GRAPH, candidates={"a": [2], "*": [1]}).widths == {"a": (2, 16), "b": (1, 3)}
    assert SearchSpace.of(GRAPH, candidates={"*": [1], "a": [2]}).widths == {"a": (1, 16), "b": (1, 3)}


def test_whole_numbers_stand_as_given_and_shares_are_rounded():
    space = SearchSpace.of(GRAPH, candidates={"a": [2, 7, "25%", "60%"]}, round_to=8, minimum=8)
    assert space.widths["a"] == (2, 7, 8, 16)


def test_sizes_above_a_smaller_width_are_left_out():
    assert SearchSpace.of(GRAPH, candidates={"[ab]": [2, 8]}).widths == {"a": (2, 8, 16), "b": (2, 3)}


def test_what_is_not_chosen_stays_full_whatever_is_listed():
    assert SearchSpace.of(GRAPH, choose="depth", candidates={"*": [1]}).widths == {"a": (16,), "b": (3,)}
    assert SearchSpace.of(GRAPH, choose="width", candidates={"*": [1]}).depths == {"d": (5,)}


def test_a_pattern_that_matches_nothing_names_near_misses():
    graph = Graph((Width("layer4.0.conv1", 16, ()),), (Depth("layer4", ("0", "1")),), ())
    wanted = r"no width and no depth is called 'layr4' \(did you mean layer4\?\); tas trace lists the names"
    with pytest.raises(ConfigError, match=wanted):
        SearchSpace.of(graph, candidates={"layr4": [1]})
    with pytest.raises(ConfigError, match=r"called 'xyz'; tas trace"):
        SearchSpace.of(graph, candidates={"xyz": [1]})


def test_a_size_that_fits_nowhere_is_refused():
    wanted = "candidates of '\\*' offer 17, but the largest of what it matches has 16; give 16 or less, or a share"
    with pytest.raises(ConfigError, match=wanted):
        SearchSpace.of(GRAPH, candidates={"*": [4, 17]})


@pytest.mark.parametrize(
    "sizes", [[0], [-3], [1.5], [0.0], ["half"], ["120%"], ["8"], [True], [None], "50%", 8, ["nan%"]]
)
def test_listed_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ConfigError, match="candidates of 'a' are .*; give a list of whole numbers of at least 1 and"):
        SpaceConfig(candidates={"a": sizes})


@pytest.mark.parametrize("name", ["round_to", "minimum"])
@pytest.mark.parametrize(
    ("value", "limit"), [(0, "above 0"), (-8, "above 0"), (2.5, "a whole number"), (True, "whole")]
)
def test_steps_and_minimum_are_whole_numbers_above_zero(name, value, limit):
    with pytest.raises(ConfigError, match=f"space {name} is {value}; it must be .*{limit}"):
        SearchSpace.of(GRAPH, **{name: value})


def test_options_take_the_place_of_those_of_the_config():
    config = SpaceConfig(round_to=8, choose="width")
    assert SearchSpace.of(GRAPH, config) == SearchSpace.of(GRAPH, round_to=8, choose="width")
    assert SearchSpace.of(GRAPH, config, choose="both") == SearchSpace.of(GRAPH, round_to=8)


def test_indices_of_candidates_become_every_architecture_once():
    space = SearchSpace.of(GRAPH)
    assert list(space.choices) == ["a", "b", "d"]
    found = {space.architecture(picks) for picks in product(*(range(len(row)) for row in space.choices.values()))}
    assert len(found) == space.num_architectures
    assert all(architecture in space for architecture in found)
