import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tas.architecture import Architecture
from tas.errors import ArchitectureError

names = st.text(min_size=1, max_size=12)
sizes = st.dictionaries(names, st.integers(1, 4096), max_size=6)


@given(sizes, sizes)
def test_an_architecture_survives_json(widths, depths):
    architecture = Architecture(widths, depths)
    assert Architecture.from_json(architecture.to_json()) == architecture


@given(st.dictionaries(names, st.integers(1, 9), min_size=2, max_size=6))
def test_equality_hash_and_text_do_not_depend_on_the_order_of_names(widths):
    one, other = Architecture(widths), Architecture(dict(reversed(widths.items())))
    assert one == other
    assert hash(one) == hash(other)
    assert one.to_json() == other.to_json()


def test_architectures_of_different_sizes_differ():
    assert (
        len({Architecture({"a": 1}), Architecture({"a": 2}), Architecture({}, {"a": 1}), Architecture({"a": 1})}) == 3
    )


def test_the_mapping_given_is_copied():
    widths = {"a": 1}
    architecture = Architecture(widths)
    widths["a"] = 7
    assert architecture.widths == {"a": 1}


def test_depths_may_be_left_out_of_the_file():
    assert Architecture.from_json('{"widths": {"a": 3}}') == Architecture({"a": 3}, {})


@pytest.mark.parametrize("size", [0, -1, 1.5, "4", None, True])
def test_a_size_that_is_no_whole_number_from_one_on_is_refused_by_name(size):
    with pytest.raises(
        ArchitectureError, match=r"widths\['conv'\] is .*; an architecture keeps a whole number of at least 1"
    ):
        Architecture({"conv": size})
    with pytest.raises(ArchitectureError, match=r"depths\['stage'\]"):
        Architecture.from_json(json.dumps({"widths": {}, "depths": {"stage": size}}))


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_sizes_that_are_no_mapping_are_refused(value):
    with pytest.raises(
        ArchitectureError, match=f"widths of an architecture must map names to sizes, not be {type(value).__name__}"
    ):
        Architecture(value)


def test_a_file_that_is_not_json_is_refused():
    with pytest.raises(ArchitectureError, match=r"this is not JSON \(.*\); give the architecture.json of a run"):
        Architecture.from_json("{'a")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"depths": {}}', "null"])
def test_json_that_is_no_architecture_is_refused(text):
    with pytest.raises(ArchitectureError, match="an architecture is .*; give the architecture.json of a run"):
        Architecture.from_json(text)
