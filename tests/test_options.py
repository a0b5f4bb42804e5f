"""Options by dotted name: what is understood, and what is refused with a hint."""

import pytest

from tas.errors import ConfigError
from tas.options import flat_options, option_names, or_default, with_options
from tas.pipeline.compress import CompressConfig
from tas.pipeline.train import TrainConfig


def changed(**options):
    return with_options(CompressConfig(), {name.replace("__", "."): value for name, value in options.items()}, "it")


def test_options_of_groups_and_of_the_whole_are_changed_and_nothing_else():
    config = changed(search__epochs="7", search__logits_betas="[0.1, 0.2]", space__choose="width", init="fresh")
    assert (config.search.epochs, config.search.logits_betas) == (7, (0.1, 0.2))
    assert (config.space.choose, config.init) == ("width", "fresh")
    assert config.train == CompressConfig().train
    assert config.search.batch_size == CompressConfig().search.batch_size


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [("search__learning_rate", "1e-2", 0.01), ("search__learning_rate", 1, 1.0),
     ("search__logits_learning_rate", "auto", "auto"), ("search__logits_learning_rate", "0.5", 0.5),
     ("train__transfer_weight", "none", None), ("train__precision", "no", "no"), ("train__precision", False, "no")],
)  # fmt: skip
def test_text_is_read_as_the_option_asks(name, given, wanted):
    group, _, option = name.partition("__")
    given = {name: given, **({"train__transfer": "dist"} if option == "transfer_weight" else {})}
    assert getattr(getattr(changed(**given), group), option) == wanted


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("search__fragmets", "1", r"it: there is no option 'search.fragmets'|it, search: there is no option"),
     ("serch__fragments", "1", "did you mean search.fragments"),
     ("search__fragments", "one", "fragments is 'one'; it must be a whole number"),
     ("search__fragments", 1.5, "fragments is 1.5; it must be a whole number"),
     ("search__fragments", True, "fragments is True; it must be a whole number"),
     ("search__fragments", "0", "fragments is 0; it must be above 0"),
     ("search__band", "papr", "band is 'papr'; it must be paper or code"),
     ("search__learning_rate", "fast", "learning_rate is 'fast'; it must be a number"),
     ("search", "3", "there is no option 'search'"),
     ("init__x", "3", "there is no option 'init.x'"),
     ("space__ratios", "0.5", "ratios is '0.5'; it must be a list"),
     ("space__ratios", "[0.5", "ratios is '.0.5'; it must be a list"),
     ("space__candidates", "{a", "candidates is '{a'; it must be a mapping")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_the_name_of_the_option(name, value, message):
    with pytest.raises(ConfigError, match=message):
        changed(**{name: value})


def test_a_list_of_names_may_be_text():
    assert changed(keep="stem, head").keep == changed(keep="[stem, head]").keep == ("stem", "head")


def test_a_misspelt_option_has_a_hint():
    with pytest.raises(ConfigError, match="it, search: there is no option 'fragmets' .did you mean fragments"):
        changed(search__fragmets="1")


def test_nested_options_have_dotted_names():
    assert flat_options({"search": {"epochs": 3}, "space.choose": "width", "keep": ["a"]}, CompressConfig) == {
        "search.epochs": 3, "space.choose": "width", "keep": ["a"],
    }  # fmt: skip
    assert {"search.epochs", "space.candidates", "keep", "init"} <= set(option_names(CompressConfig))


def test_the_config_of_another_stage_is_refused_with_the_one_inside():
    assert or_default(None, TrainConfig) == TrainConfig()
    with pytest.raises(ConfigError, match=r"config= is a CompressConfig; pass config\.train or config\.teacher$"):
        or_default(CompressConfig(), TrainConfig)
    with pytest.raises(ConfigError, match=r"config= is a TrainConfig; pass a tas\.CompressConfig$"):
        or_default(TrainConfig(), CompressConfig)
