import copy
import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import nets
import pytest
import torch
import torch.nn.functional as F
from nets import images, perturbed
from torch import nn

from tas.architecture import Architecture
from tas.errors import ModelError
from tas.graph import Run
from tas.nn import selfcheck, witness
from tas.nn.blocks import find_depths
from tas.nn.capture import capture
from tas.nn.grouping import build_graph
from tas.nn.selfcheck import self_check, without
from tas.nn.surgery import mask
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace


def by_rules_alone(model: nn.Module):
    captured = capture(model, [images()])
    return build_graph(model, captured, find_depths(model, captured, [images()]), ((4, 3, 8, 8),))


def test_only_the_group_whose_number_stands_in_the_forward_is_frozen():
    model = perturbed(nets.HardCoded())
    graph = by_rules_alone(model)
    assert set(graph.full.widths) == {"free.0", "conv.0"}
    checked = self_check(model, graph, [images()])
    assert set(checked.full.widths) == {"free.0"}
    (found,) = [item for item in checked.frozen if item not in graph.frozen]
    assert found.axis == "conv.0.weight[0]"
    assert found.reason.startswith("the cut model fails: shape '[-1, 384]' is invalid")


@dataclass
class Prediction:
    scores: torch.Tensor
    means: torch.Tensor


torch.export.register_dataclass(Prediction)


class Averages(nn.Module):
    """Divides by how many channels it has, which no rule sees."""

    def __init__(self, last: nn.Module):
        super().__init__()
        self.free, self.conv, self.last = nets.conv_bn(3, 8), nets.conv_bn(8, 12), last

    def forward(self, x):
        free = self.free(x)
        made = self.conv(free)
        return self.last(free), made / made.shape[1]


class InADataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = Averages(nn.Identity()), nets.head(12)

    def forward(self, x):
        return Prediction(self.head(self.inner(x)[1]), x.mean((2, 3)))


class InOneTensor(nn.Module):
    """As detectors do: large boxes and small scores."""

    def __init__(self):
        super().__init__()
        self.inner, self.scores = Averages(nn.Conv2d(8, 4, 1)), nn.Conv2d(12, 3, 1)

    def forward(self, x):
        boxes, made = self.inner(x)
        return torch.cat([boxes.sigmoid() * 640, 1e-3 * self.scores(made)], 1).flatten(2)


@pytest.mark.parametrize("model", [InADataclass(), InOneTensor()])
def test_what_is_wrong_is_seen_in_every_kind_of_output(model):
    assert set(trace(perturbed(model), images()).full.widths) <= {"inner.free.0"}


def test_channels_that_a_forward_tells_apart_by_their_places_are_frozen():
    class Causal(nn.Conv2d):
        def forward(self, x):
            places = torch.ones(self.weight.shape[:2]).tril()[..., None, None]
            return self._conv_forward(x, self.weight * places, self.bias)

    model = perturbed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Causal(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    graph = trace(model, images())
    assert graph.full.widths == {}
    reason = "with its channels in another order it differs from the model by"
    assert reason in {item.axis: item.reason for item in graph.frozen}["0.weight[0]"]


def test_a_graph_that_holds_is_returned_as_it_is():
    model = perturbed(nets.Residual())
    graph = by_rules_alone(model)
    assert self_check(model, graph, [images()]) == graph


def test_a_forward_that_reads_a_weight_is_frozen_by_what_it_computes():
    model = perturbed(nets.ReadsWeight())
    assert set(by_rules_alone(model).full.widths) == {"free.0", "conv"}
    assert trace(model, images()).widths == ()


class ReadsShape(nn.Module):
    """Cutting works; what stands in the layer's place is of another class."""

    def __init__(self):
        super().__init__()
        self.free, self.conv, self.head = nets.conv_bn(3, 6), nn.Conv2d(6, 8, 3, padding=1), nets.head(8)

    def forward(self, x):
        assert type(self.conv) is nn.Conv2d
        return self.head(self.conv(self.free(x)))


def test_what_only_runs_with_its_own_class_of_layer_is_frozen_with_the_reason():
    graph = trace(perturbed(ReadsShape()), images())
    reasons = {item.axis: item.reason for item in graph.frozen}
    assert "model fails: assert <class" in reasons["conv.weight[0]"]


class WrongLayout(nn.Module):
    """A lie in the graph, not in the net: see the test."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nets.conv_bn(3, 24), nets.conv_bn(3, 24), nets.head(48)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


def test_a_wrong_layout_is_caught_by_its_numbers():
    model = perturbed(WrongLayout())
    graph = by_rules_alone(model)
    swapped = (Run("right.0", 0, 24), Run("left.0", 0, 24))  # the classifier is told the halves in the wrong order

    def lie(layer):
        if layer.name != "head.2":
            return layer
        weight = replace(layer.parameters[0], layouts=(None, swapped))
        return replace(layer, parameters=(weight, *layer.parameters[1:]))

    wrong = replace(graph, layers=tuple(map(lie, graph.layers)))
    checked = self_check(model, wrong, [images()])
    assert checked.widths == ()
    assert any("the cut model differs from the masked one by" in item.reason for item in checked.frozen)


def test_a_frozen_width_counts_in_full_and_the_others_stay_as_they_were():
    graph = by_rules_alone(perturbed(nets.Concat()))
    frozen = without(graph, "left.0", "because")
    assert frozen.full.widths == {"right": 6, "last.0": 10}
    assert (frozen.macs(), frozen.params()) == (graph.macs(), graph.params())
    for right, last in ((1, 1), (3, 10), (6, 4)):
        small = replace_widths(graph, right=right, last=last)
        kept = type(small)({"right": right, "last.0": last})
        assert (frozen.macs(kept), frozen.params(kept)) == (graph.macs(small), graph.params(small))
    assert [(item.axis, item.reason) for item in frozen.frozen if item not in graph.frozen] == [
        ("left.0.weight[0]", "because")
    ]
    mixed = {layer.name: layer.mixed_by for layer in frozen.layers}
    assert (mixed["left.0"], mixed["right"], mixed["last.0"]) == (None, "right", "last.1")


def replace_widths(graph, *, right: int, last: int):
    full = graph.full
    return type(full)({**full.widths, "right": right, "last.0": last}, full.depths)


def test_a_frozen_depth_keeps_its_blocks_and_their_cost():
    graph = by_rules_alone(perturbed(nets.Residual()))
    frozen = without(graph, "stage", "because")
    assert frozen.depths == ()
    assert frozen.macs() == graph.macs()
    assert all(layer.gate is None for layer in frozen.layers)
    assert frozen.frozen[-1].axis == "stage"


class SquareHeads(nn.Module):
    """As many heads as channels in each; the forward knows the latter, under the name given."""

    def __init__(self, name: str, *, strength: float = 1.0):
        super().__init__()
        self.name, self.stem, self.head = name, nn.Conv2d(3, 16, 2, stride=2), nn.Linear(16, 5)
        setattr(self, name, 4)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.25 * strength)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        shape = (*x.shape[:2], -1, getattr(self, self.name))
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


@pytest.mark.parametrize("name", ["head_dim", "attention_head_size", "d_k"])
def test_channels_of_a_head_are_not_taken_for_the_number_of_heads(name):
    graph = trace(SquareHeads(name), images())
    assert graph.full.widths == {"stem": 16, "query": 4}
    assert graph.attributes == ()


@pytest.mark.parametrize("strength", [1, 0.01])
def test_weak_weights_do_not_hide_what_is_wrong_with_the_heads(strength):
    graph = trace(SquareHeads("chunk", strength=strength), images())
    assert graph.attributes == ()  # a guess that is wrong, and left out when it is seen
    assert graph.full.widths == {"stem": 16, "query": 4}


class Fails(nn.Module):
    """Export sees no error; running does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        if not torch.compiler.is_exporting():
            raise OSError("no file")
        return self.conv(x)


def test_a_model_that_fails_on_its_example_is_an_error_of_ours():
    with pytest.raises(ModelError, match="Fails does not run on an example of shape .*: no file"):
        trace(Fails(), images())


def test_the_model_given_is_not_changed():
    model = perturbed(nets.HardCoded())
    before = copy.deepcopy(model.state_dict())
    self_check(model, by_rules_alone(model), [images()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


class Delicate(nn.Module):
    """What it returns is the difference of two large numbers, so that the order of their sums shows."""

    def __init__(self, only: torch.dtype | None = None):
        super().__init__()
        self.only, self.free, self.conv = only, nets.conv_bn(3, 64), nn.Conv2d(64, 64, 3, padding=1)
        self.head = nets.head(64)

    def forward(self, x):
        assert self.only is None or x.dtype == self.only
        x = self.free(x)
        return self.head((self.conv(x * 1.0001) - self.conv(x)) * 1e4)


def test_what_differs_by_rounding_alone_is_not_frozen():
    graph = trace(perturbed(Delicate()), images())
    assert set(graph.full.widths) == {"free.0", "conv"}


def test_what_does_not_run_in_double_is_judged_as_it_is():
    graph = trace(perturbed(Delicate(torch.float32)), images())
    assert "differs from the m" in " ".join(item.reason for item in graph.frozen)


def test_what_fails_is_not_tried_again_in_double_precision(monkeypatch):
    def double(model: nn.Module, *given: object) -> nn.Module:
        raise AssertionError("only what differs may be rounding")

    monkeypatch.setattr(witness, "fresh_copy", double)
    model = perturbed(nets.HardCoded())
    assert set(self_check(model, by_rules_alone(model), [images()]).full.widths) == {"free.0"}


def test_numbers_that_are_compared_stay_where_nothing_needs_them():
    model = perturbed(nets.Compares(), dtype=torch.double)
    assert {(item.module, item.name) for item in by_rules_alone(nets.Compares()).attributes} == {
        ("block", "dim"), ("block", "dim_out"),
    }  # fmt: skip
    graph = trace(model, images(dtype=torch.double))
    assert graph.attributes == ()
    assert graph.full.widths == {"first.0": 8, "block.conv.0": 12}
    alike = Architecture({"first.0": 5, "block.conv.0": 5}, {})  # another way, were both numbers 5
    inputs = images(dtype=torch.double)
    assert torch.allclose(mask(model, graph, alike)(inputs), derive(model, graph, alike)(inputs), atol=1e-9)


def test_numbers_that_are_compared_follow_where_a_forward_needs_them():
    class Asserts(nets.Compares.Block):
        def forward(self, x):
            assert x.shape[1] == self.dim
            return super().forward(x)

    model = nets.Compares()
    model.block.__class__ = Asserts
    graph = trace(perturbed(model), images())
    assert [(width.name, width.excluded) for width in graph.widths] == [("block.conv.0", (8,))]  # else no projection
    assert graph.frozen[-1].reason.startswith("cut to as many channels as others, the cut model differs")

    model = nets.Compares()
    model.block = Asserts(8, 8)
    model.head = nets.head(8)
    graph = trace(perturbed(model), images())
    assert [item.name for item in graph.attributes] == ["dim", "dim_out"]
    assert graph.full.widths == {"first.0": 8}


@pytest.mark.parametrize("sides", [{"side": 8}, {"height": 8, "width": 8}])
def test_the_side_of_an_image_that_equals_a_width_by_chance_stays(sides):
    class Unfolds(nn.Module):
        def __init__(self):
            super().__init__()
            vars(self).update(sides)
            self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1)

        def forward(self, x):
            tokens = self.first(x).flatten(2).transpose(1, 2)
            sizes = [getattr(self, name) for name in sides]
            return self.head(self.second(tokens.transpose(1, 2).reshape(len(x), -1, *(sizes * 2)[:2])))

    graph = trace(perturbed(Unfolds()), images())
    assert graph.full.widths == {"first": 8, "second": 12}
    assert graph.attributes == ()


class AsksShape(nn.Module):
    """Projects where shapes differ: none of its numbers says so."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nets.conv_bn(3, 8), nets.conv_bn(8, 12), nets.conv_bn(12, 20)
        self.projects = nn.ModuleList([nn.Conv2d(8, 12, 1), nn.Conv2d(12, 20, 1)])
        self.head = nets.head(20)

    def forward(self, x):
        x = self.first(x)
        for conv, project in zip((self.second, self.third), self.projects, strict=True):
            made = conv(x)
            x = made + (project(x) if x.shape[1] != made.shape[1] else x)
        return self.head(x)


@pytest.mark.parametrize("keep", [(), ("first",), ("second.0",)])
def test_no_sizes_are_left_at_which_shapes_that_differ_become_equal(keep):
    model = perturbed(AsksShape(), dtype=torch.double)
    graph, inputs = trace(model, images(dtype=torch.double), keep=keep), images(dtype=torch.double)
    space = SearchSpace.of(graph, candidates={width.name: list(range(1, width.size + 1)) for width in graph.widths})
    assert space.widths
    for sizes in itertools.product(*space.widths.values()):
        small = Architecture(dict(zip(space.widths, sizes, strict=True)), {})
        assert torch.allclose(mask(model, graph, small)(inputs), derive(model, graph, small)(inputs), atol=1e-9)


def test_channels_that_stay_take_single_sizes_from_those_that_are_compared_with_them():
    graph = trace(perturbed(AsksShape()), images(), keep="first")  # of 8 channels
    assert [(width.name, width.excluded) for width in graph.widths] == [("second.0", (8,))]


def test_heads_behind_layers_in_which_the_signal_fades_are_proven_all_the_same():
    class Compares(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.qkv, self.out = 4, nn.Linear(8, 96), nn.Linear(32, 8)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            if self.heads == 4:  # as einops does, to see that all fits
                x = x + 0
            q, k, v = (t.view(len(x), 64, self.heads, -1).transpose(1, 2) for t in (q, k, v))
            mixed = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
            return self.out(mixed.transpose(1, 2).reshape(len(x), 64, -1))

    class Fades(nn.Module):
        def __init__(self):
            super().__init__()
            blocks = [nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()) for _ in range(12)]
            self.stem, self.norm, self.attention = (
                nn.Sequential(nn.Conv2d(3, 8, 1), *blocks),
                nn.LayerNorm(8),
                Compares(),
            )
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
            return self.head((x + self.attention(x)).mean(1))

    torch.manual_seed(0)
    graph = trace(Fades(), images())
    assert graph.full.widths["attention.qkv"] == 4
    assert [(item.module, item.name) for item in graph.attributes] == [("attention", "heads")]


def test_equal_tokens_do_not_hide_what_is_wrong_with_the_heads():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.options, self.qkv, self.out = SimpleNamespace(heads=4), nn.Linear(16, 96), nn.Linear(32, 16)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.options.heads, -1).permute(2, 0, 3, 1, 4)
            places = torch.arange(x.shape[1])
            far = (places[None] - places[:, None]).abs().neg().to(x)
            return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=far).transpose(1, 2).flatten(2))

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.attention, self.head = nn.Embedding(50, 16), Attention(), nn.Linear(16, 5)

        def forward(self, tokens):
            x = self.words(tokens)
            return self.head(x + self.attention(x))

    torch.manual_seed(0)
    model, tokens = Reads().double().eval(), torch.randint(50, (2, 12))
    for example in (tokens, tokens * 0):
        graph = trace(model, example)
        for width, size in graph.full.widths.items():
            half = Architecture({**graph.full.widths, width: size // 2}, {})
            torch.testing.assert_close(derive(model, graph, half)(tokens), mask(model, graph, half)(tokens))


def test_what_a_forward_draws_at_random_is_no_difference():
    class Draws(nets.Plain):
        def forward(self, x):
            x = self.second(self.first(x).relu()).relu()
            return self.head(x) + torch.randn(len(x), 5)

    assert set(trace(perturbed(Draws()), images()).full.widths) == {"first.0", "second.0"}


def test_of_what_fails_at_some_sizes_only_the_culprit_is_frozen():
    class Picky(nets.Plain):
        def forward(self, x):
            x = self.first(x).relu()
            assert x.shape[1] not in (6, 7, 8, 9)  # what three tenths of 12 pass
            return self.head(self.second(x).relu())

    model = Picky()
    model.first, model.second = nets.conv_bn(3, 12), nets.conv_bn(12, 20)
    model.head = nets.head(20)
    graphs = [self_check(perturbed(model), by_rules_alone(model), [images()], seed) for seed in range(8)]
    found = [set(graph.full.widths) for graph in graphs]
    assert {"second.0"} in found  # where a trial has so many of the first
    assert all("second.0" in widths for widths in found)
    reasons = [item.reason for graph in graphs for item in graph.frozen if item.axis == "first.0.weight[0]"]
    assert all(reason.startswith("cut to some sizes, the cut model fails") for reason in reasons)


def test_whoever_fails_only_together_is_found_by_halving(monkeypatch):
    class Quarrel(nn.Sequential):
        def forward(self, x):
            assert len(self[9].weight) == 6 or len(self[30].weight) == 6
            return super().forward(x)

    model = Quarrel(nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 1) for _ in range(39)), nets.head(6))
    trials, fails = [], witness.Witness.failure
    monkeypatch.setattr(witness.Witness, "failure", lambda self, *given: trials.append(1) or fails(self, *given))
    graph = self_check(perturbed(model), by_rules_alone(model), [images()])
    (culprit,) = set(by_rules_alone(model).full.widths) - set(graph.full.widths)
    assert culprit in ("9", "30")
    (reason,) = {item.reason for item in graph.frozen if item.axis == f"{culprit}.weight[0]"}
    assert reason.startswith("cut together with other groups, the cut model fails")
    assert len(trials) < 30  # of 41 groups


def test_of_what_fails_at_small_sizes_alone_only_those_are_excluded_and_of_others_alike():
    norms = [nn.Sequential(nn.Conv2d(12 if i == 0 else 32, 32, 1), nn.GroupNorm(4, 32), nn.ReLU()) for i in range(6)]
    model = nn.Sequential(nets.conv_bn(3, 12), nn.AdaptiveAvgPool2d(1), *norms, nn.Conv2d(32, 5, 1))
    graph = trace(model, torch.zeros(1, 3, 8, 8))  # one channel of a group at one position has no variance
    assert [width.excluded for width in graph.widths] == [(), *[(1,)] * 6]
    assert {item.reason for item in graph.frozen} == {"output of the model"}


def test_culprits_in_a_row_are_found_with_two_trials_each():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 1) for _ in range(31)), nets.head(6))
    graph, trials = by_rules_alone(model), []
    culprits = {str(place) for place in range(10, 20)}

    class Witness:
        def failure(self, graph, architectures, executions):
            trials.append(1)
            sizes = architectures[0].widths
            return "fails" if any(sizes.get(name, 6) < 6 for name in culprits) else None

    left = selfcheck._without_culprits(Witness(), graph, selfcheck.small(graph), "cut")  # type: ignore[arg-type]
    assert set(graph.full.widths) - set(left.full.widths) == culprits
    assert len(trials) < 30  # of 32 groups, six trials for the first


def test_a_size_that_equals_a_number_which_is_compared_is_left_out():
    class Needs(nets.Compares.Block):
        def forward(self, x):
            assert len(self.conv[0].weight) == self.dim_out  # which follows; the other is a number that stays
            made = self.conv(x).view(len(x), self.dim_out, 8, 8)
            return F.relu(made + (self.project(x) if self.dim != self.dim_out else x))

    model = nets.Compares()
    model.block.__class__ = Needs
    graph = trace(perturbed(model), images(), keep="first")
    assert [(width.name, width.excluded) for width in graph.widths] == [("block.conv.0", (8,))]
    assert 8 not in SearchSpace.of(graph, candidates={"*": [7, 8, 9]}).widths["block.conv.0"]
