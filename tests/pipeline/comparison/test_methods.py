"""Methods and transfers as people write them."""

import pytest

from tas.errors import ConfigError
from tas.pipeline.comparison.methods import Method, canonical_transfer, read_methods, read_transfer, with_transfer
from tas.pipeline.compress import CompressConfig
from tas.pipeline.rivals import RivalConfig
from tas.pipeline.train import TrainConfig

BASE = CompressConfig()


def one(text) -> Method:
    (method,) = read_methods(text)
    return method


def test_text_lists_and_mappings_say_the_same():
    options = {"search.fragments": "1", "search.band": "code"}
    wanted = (Method("tas:search.fragments=1,search.band=code", "tas", options), Method("l1", "l1"))
    text = "tas:search.fragments=1,search.band=code"
    for given in (f"{text} l1", f"{text};l1", f"{text},l1", f" {text} ;\n l1 ", [text, "l1"], list(wanted)):
        assert read_methods(given) == wanted
    mapping = {
        "mine": {"method": "tas-paper", "options": {"search": {"fragments": 1}}},
        "l1": None,
        "two": "tas:init=inherit",
    }
    found = read_methods(mapping)
    assert [method.label for method in found] == ["mine", "l1", "two"]
    assert found[0].job(BASE, 0).search.fragments == 1
    assert read_methods([{"mine": mapping["mine"]}, "l1"])[0] == found[0]
    assert read_methods("{mine: {method: tas, options: {search.fragments: 1}}}")[0].options == {"search.fragments": 1}


def test_commas_separate_methods_and_their_options():
    names = [method.label for method in read_methods("l1,tas:search.fragments=1,space.round_to=8,tas:init=inherit, l2")]
    assert names == ["l1", "tas:search.fragments=1,space.round_to=8", "tas:init=inherit", "l2"]


def test_commas_in_brackets_do_not_separate():
    method = one("tas:space.ratios=[0.25, 0.5],keep=[stem, head]")
    job = method.job(BASE, 0)
    assert job.space.ratios == (0.25, 0.5)
    assert job.keep == ("stem", "head")


def test_named_methods_are_what_they_say():
    assert one("tas").job(BASE, 3) == CompressConfig(seed=3)
    assert one("tas-width").job(BASE, 0).space.choose == "width"
    assert one("tas-depth").job(BASE, 0).space.choose == "depth"
    paper = one("tas-paper").job(BASE, 0).search
    assert (paper.start, paper.depth_samples, paper.band) == ("scratch", "all", "paper")
    assert (paper.temperature_start, paper.temperature_end, paper.teacher_weight) == (10.0, 0.1, 0.0)
    assert (paper.logits_start, paper.architectures, paper.interpolation) == ("random", 0, "average")
    assert one("tas-paper").job(BASE, 0).residuals == "free"
    assert paper.epochs == BASE.train.epochs // 2  # ours has none, it has nothing else
    assert one("tas-paper:search.epochs=7").job(BASE, 0).search.epochs == 7


def test_options_of_a_method_win_over_its_own():
    assert one("tas-paper:search.temperature_start=5").job(BASE, 0).search.temperature_start == 5.0
    assert one("sfp:rivals.sfp_epochs=3").rival(RivalConfig(candidates=7), 2) == RivalConfig(
        candidates=7, sfp_epochs=3, seed=2
    )
    assert one({"s": {"method": "sfp", "options": {"rivals": {"sfp_epochs": 3}}}}).options == {"rivals.sfp_epochs": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "methods is empty; name one or more of tas"),
     ("tsa", r"there is no method 'tsa' .did you mean"),
     ("tas tas", "method tas is there twice"),
     ("tas:fragments", "'fragments' is no option; write NAME=VALUE"),
     ("{a: 3}", "method a is 3; write {method: tas"),
     ("{a: [}", "is not YAML"),
     ({"a": {"method": "tas", "option": {}}}, "method a is"),
     ({"a": {"method": "tas", "options": 3}}, "options is 3; write a mapping")],
)  # fmt: skip
def test_what_is_no_method_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_methods(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("tas:search.fragmets=1", "search: there is no option 'fragmets' .did you mean fragments"),
     ("tas:serch.fragments=1", "there is no option 'serch.fragments' .did you mean search.fragments"),
     ("tas:search.fragments=many", "search: fragments is 'many'; it must be a whole number"),
     ("tas:train.epochs=3", "train.epochs cannot differ between methods; all methods train under one recipe"),
     ("tas:train.transfer=dkd", "it is the option transfers"),
     ("tas:seed=3", "it is the option seeds|are the option seeds"),
     ("tas:teacher.epochs=3", "the teacher is the same for all methods"),
     ("tas:init=fresh", "where weights come from is said by the transfers"),
     ("tas:rivals.candidates=3", "rivals.candidates has no effect on tas; its own options are those of search"),
     ("tas:search.fragments=1", "search.fragments has no effect, for search.epochs is 0 .*or give it to tas-paper"),
     ("tas:search.epochs=0,search.band=code", "search.band has no effect, for search.epochs is 0"),
     ("l1:search.fragments=1", "search.fragments has no effect on l1; its own options are rivals.allocation$"),
     ("tas-paper:search.halving_steps=7", "search.halving_steps has no effect, for search.architectures is below 2"),
     ("tas-paper:search.held_out_images=7", "has no effect, for search.logits_start is random"),
     ("tas-paper:search.distillation_temperature=1", "has no effect, for search.teacher_weight is 0"),
     ("tas-paper:search.band=code,search.tolerance=0.2", "search.tolerance has no effect, for search.band is code"),
     ("tas:search.architectures=0,search.momentum=0", "search.momentum has no effect, for search.epochs is 0 and"),
     ("tas:search.sync_batch_norm=true", "every job of a comparison is done by one process"),
     ("l1:train.sync_batch_norm=true", "every job of a comparison is done by one process"),
     ("l1:rivals.candidates=5", "rivals.candidates has no effect on l1; its own options are rivals.allocation$"),
     ("uniform:rivals.allocation=share", "has no effect on uniform; its own options are none"),
     ("random:rivals.population=5", "has no effect on random; .* rivals.candidates and rivals.calibration_batches")],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_by_name(text, message):
    with pytest.raises(ConfigError, match=message):
        one(text).job(BASE, 0)


def test_a_rival_may_interpolate_what_it_inherits():
    assert one("l1:init=interpolate").job(BASE, 0).init == "interpolate"


@pytest.mark.parametrize(
    ("text", "transfers", "message"),
    [("l1:train.temperature=1", ("none", "init+hints"), "temperature has no effect, for no transfer is kd or dkd or"),
     ("tas:train.teacher_weight=0.5", ("dkd",), "train.teacher_weight has no effect, for no transfer is kd;"),
     ("l1:init=interpolate", ("none", "kd"), "init has no effect, for no transfer begins with init")],
)  # fmt: skip
def test_options_that_no_transfer_reads_are_refused(text, transfers, message):
    with pytest.raises(ConfigError, match=message):
        one(text).require_read(transfers)
    one(text).require_read((*transfers, "init+kd"))


def test_a_rivals_option_is_checked_too():
    with pytest.raises(ConfigError, match="rivals: there is no option 'candidate' .did you mean candidates"):
        one("random:rivals.candidate=3").rival(RivalConfig(), 0)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("none", (False, "none")), ("init", (True, "none")), ("kd", (False, "kd")), ("init+kd", (True, "kd")),
     ("init+attention", (True, "attention")), ("init+none", (True, "none"))],
)  # fmt: skip
def test_a_transfer_says_where_weights_come_from_and_what_is_learned(name, wanted):
    assert read_transfer(name) == wanted
    assert read_transfer(canonical_transfer(name)) == wanted


@pytest.mark.parametrize("name", ["kdd", "init+", "init+kdd", "initkd", "", "+kd"])
def test_an_unknown_transfer_is_refused(name):
    with pytest.raises(ConfigError, match="there is no transfer .* choose of none, kd"):
        read_transfer(name)


def test_a_weight_of_one_transfer_is_not_taken_for_another():
    recipe = TrainConfig(transfer="hints", transfer_weight=10.0, layers="a,b")
    assert with_transfer(recipe, "hints", 3).transfer_weight == 10.0
    other = with_transfer(recipe, "attention", 3)
    assert (other.transfer_weight, other.layers, other.epochs) == (None, ("a", "b"), 3)
    assert with_transfer(recipe, "kd", 3).layers == ()
