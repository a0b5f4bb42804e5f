from tas.nn.paths import joined, lies_in


def test_a_path_lies_in_its_module_and_in_all_around_it():
    assert all(lies_in("layer1.0.conv", around) for around in ("layer1.0.conv", "layer1.0", "layer1", ""))
    assert not any(lies_in("layer10.0", other) for other in ("layer1", "layer10.0.conv", "0"))


def test_the_model_itself_has_no_path():
    assert (joined("", "weight"), joined("layer1", "0")) == ("weight", "layer1.0")
