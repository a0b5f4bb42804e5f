import re

import nets
import pytest
import torch
from nets import images, perturbed
from torch import nn

from tas.errors import ConfigError
from tas.graph import Graph
from tas.nn.blocks import find_depths
from tas.nn.capture import capture
from tas.nn.grouping import build_graph
from tas.nn.keep import find_kept, keep_modules
from tas.nn.surgery import cut
from tas.pipeline.trace import trace
from tas.space import SearchSpace


def by_rules_alone(model: nn.Module) -> Graph:
    captured = capture(model, [images()])
    return build_graph(model, captured, find_depths(model, captured, [images()]), ((4, 3, 8, 8),))


def keeping(model: nn.Module, graph: Graph, *patterns: str) -> Graph:
    return keep_modules(graph, find_kept(model, patterns))


@pytest.mark.parametrize("name", nets.EXACT)
def test_kept_modules_keep_their_shapes_and_their_place_in_the_smallest_network(name):
    model = perturbed(nets.EXACT[name]())
    graph = by_rules_alone(model)
    for path, module in model.named_modules():
        if path:
            kept = keeping(model, graph, path)
            small = cut(model, kept, SearchSpace.of(kept).smallest)
            left = small.get_submodule(path)
            assert type(left) is type(module)
            shapes = {key: value.shape for key, value in left.state_dict().items()}
            assert shapes == {key: value.shape for key, value in module.state_dict().items()}
            assert sum(p.numel() for p in small.parameters()) == kept.params(SearchSpace.of(kept).smallest)
            assert (kept.macs(), kept.params()) == (graph.macs(), graph.params())


def test_keeping_nothing_changes_nothing():
    model = perturbed(nets.Residual())
    graph = by_rules_alone(model)
    assert keeping(model, graph) == graph
    assert trace(model, images(), keep=()) == trace(model, images())


def test_a_traced_model_keeps_what_the_rules_and_the_self_check_allow():
    model = perturbed(nets.Residual())
    assert trace(model, images(), keep=["stage.1.inner"]) == keeping(model, by_rules_alone(model), "stage.1.inner")
    assert trace(model, images(), keep="stem, head.*") == keeping(model, by_rules_alone(model), "stem", "head.*")


def test_a_kept_layer_freezes_every_width_it_makes_or_reads():
    model = perturbed(nets.Plain())
    graph = by_rules_alone(model)
    for pattern, left in (("first", {"second.0": 12}), ("first.1", {"second.0": 12}), ("head.*", {"first.0": 8}),
                          ("second.0", {}), ("second.1", {"first.0": 8})):  # fmt: skip
        assert keeping(model, graph, pattern).full.widths == left
    (found,) = [item for item in keeping(model, graph, "head*").frozen if item not in graph.frozen]
    assert (found.axis, found.module) == ("second.0.weight[0]", "head.2")
    assert found.reason == "kept, as keep='head*' asks"


def test_the_first_pattern_gives_the_reason():
    model = perturbed(nets.Plain())
    graph = keeping(model, by_rules_alone(model), "first", "*")
    assert graph.full.widths == {}
    reasons = {item.axis: item.reason for item in graph.frozen}
    assert reasons["first.0.weight[0]"] == "kept, as keep='first' asks"
    assert reasons["second.0.weight[0]"] == "kept, as keep='*' asks"


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [("stage.0", (0, 1, 2, 3)), ("stage.1.outer.1", (1, 2, 3)), ("stage.2", (2, 3)), ("stage.3", ()), ("stage", ()),
     ("stage.?.inner", ()), ("stem", (0, 1, 2, 3))],
)  # fmt: skip
def test_a_depth_starts_at_its_last_kept_block(pattern, blocks):
    model = perturbed(nets.Residual(4))
    graph = by_rules_alone(model)
    kept = keeping(model, graph, pattern)
    assert [depth.blocks for depth in kept.depths] == ([tuple(f"stage.{i}" for i in blocks)] if blocks else [])
    stay = {item.axis for item in kept.frozen if item not in graph.frozen and not item.axis.endswith("]")}
    assert stay == ({f"stage.{i}" for i in range(1, blocks[0] + 1)} if blocks else {"stage"})
    gates = {layer.name: layer.gate for layer in kept.layers}
    for place, block in enumerate(blocks):
        assert gates[f"stage.{block}.inner.0"] == (("stage", place) if place else None)
    for block in set(range(4)) - set(blocks):
        assert gates[f"stage.{block}.inner.0"] is None


def test_a_shortened_depth_is_cut_and_searched_like_any_other():
    model = perturbed(nets.Residual(4))
    graph = trace(model, images(), keep=["stage.1"])  # the self-check proves cut and supernet
    assert graph.full.depths == {"stage": 3}
    smallest = SearchSpace.of(graph).smallest
    assert graph.skipped(smallest) == ("stage.2", "stage.3")
    assert cut(model, graph, smallest)(images()).shape == (4, 5)


def test_a_module_without_parameters_keeps_its_block():
    model = nn.Sequential(nets.conv_bn(3, 8), nn.Sequential(nets.Block(8, 6), nets.Block(8, 6), nets.Block(8, 6)))
    for block in model[1]:
        block.drop = nn.Dropout()
    model.append(nets.head(8))
    graph = by_rules_alone(perturbed(model))
    kept = keeping(model, graph, "*.drop")
    assert kept.widths == graph.widths
    assert (len(graph.depths), kept.depths) == (1, ())


def test_a_module_with_two_paths_is_kept_under_both():
    model = perturbed(nets.SharedInBlocks())
    graph = by_rules_alone(model)
    assert find_kept(model, ["stage.2.inner"]).keys() == find_kept(model, ["stage.1.inner"]).keys()
    for path in ("stage.1.inner", "stage.2.inner"):
        kept = keeping(model, graph, path)
        assert "stage.1.inner.0" not in kept.full.widths
        assert kept.depths == ()


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("stag.1", r" \(did you mean stage.1"), ("*.iner", r" \(did you mean inner"), ("xyz", "; give module paths")],
)
def test_a_pattern_that_matches_no_module_names_near_misses(pattern, hint):
    model = nets.Residual()
    with pytest.raises(ConfigError, match=f"keep: no module of Residual is called {re.escape(repr(pattern))}{hint}"):
        trace(model, images(), keep=["stem", pattern])


def test_the_model_given_is_not_changed():
    model = perturbed(nets.Residual())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, images(), keep=["stem"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
