import copy
import random
from dataclasses import dataclass, replace
from functools import partial

import nets
import pytest
import torch
import torch.nn.functional as F
from named import traced
from nets import counted_macs, images, perturbed
from token_nets import GainsOfHeads, Tokens
from torch import nn
from torch.nn.utils import prune
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from tas.errors import ArchitectureError, ModelError
from tas.graph import Graph
from tas.nn.surgery import mask
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace


def architectures(graph, count: int):
    space, generator = SearchSpace.of(graph), torch.Generator().manual_seed(1)
    return [space.smallest, graph.full, *(space.sample(generator) for _ in range(count))]


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max() / one.detach().abs().max())


@pytest.mark.parametrize(
    ("name", "widths", "depths"),
    [
        ("resnet18", 12, 4),
        ("mobilenet_v2", 25, 5),
        ("vgg11_bn", 10, 0),
        ("densenet", 28, 0),
        ("efficientnet_b0", 40, 5),
    ],
)
def test_named_models_have_their_widths_and_nothing_frozen_but_the_classifier(name, widths, depths):
    graph = traced(name).graph
    assert (len(graph.widths), len(graph.depths)) == (widths, depths)
    assert [item.reason for item in graph.frozen] == ["output of the model"]
    classifier = [path for path, module in traced(name).model.named_modules() if isinstance(module, nn.Linear)][-1]
    assert graph.frozen[0].axis == f"{classifier}.weight[0]"


def test_costs_of_named_models_are_real_counts(named):
    assert named.graph.macs() == counted_macs(named.model, named.images[:1])
    assert named.graph.params() == sum(parameter.numel() for parameter in named.model.parameters())
    for architecture in architectures(named.graph, 2):
        small = derive(named.model, named.graph, architecture)
        assert named.graph.macs(architecture) == counted_macs(small, named.images[:1])
        assert named.graph.params(architecture) == sum(parameter.numel() for parameter in small.parameters())


def test_the_derived_vgg_computes_what_the_masked_one_computes():
    vgg = traced("vgg11_bn")
    with torch.no_grad():
        small = derive(vgg.model, vgg.graph, vgg.space.smallest)(vgg.images)
        assert relative(mask(vgg.model, vgg.graph, vgg.space.smallest)(vgg.images), small) < 1e-5
        assert relative(vgg.model(vgg.images), small) > 1e-2


@pytest.mark.parametrize("name", nets.ALL)
def test_costs_of_toy_nets_are_real_counts(name):
    model, graph = perturbed(nets.ALL[name]()), nets.graph_of(name)
    for architecture in architectures(graph, 3):
        small = derive(model, graph, architecture)
        assert graph.macs(architecture) == counted_macs(small, images())
        assert graph.params(architecture) == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("equation", ["bi,bj->bij", "...i,...j"])
def test_an_einsum_that_sums_over_nothing_costs_nothing(equation):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale, self.few, self.last = (
                nn.Conv2d(3, 8, 3),
                nn.Linear(8, 8),
                nn.Linear(8, 6),
                nn.Linear(8, 4),
            )

        def forward(self, x):
            x = self.conv(x)
            x = torch.einsum("bchw,bc->bchw", x, self.scale(x.mean((2, 3))).sigmoid()).mean((2, 3))
            return self.last(torch.einsum(equation, self.few(x), x).mean(1))

    graph = trace(Gate(), images())
    assert graph.full.widths == {"conv": 8}
    assert graph.macs() == counted_macs(Gate(), images()[:1])


@pytest.mark.parametrize("name", nets.ALL)
def test_what_is_open_can_be_cut_to_any_size(name):
    # double precision: a layer norm over two channels amplifies what float32 rounds
    model, inputs = perturbed(nets.ALL[name](), dtype=torch.double), images(dtype=torch.double)
    graph, draw = trace(model, inputs), random.Random(0)
    full = graph.full
    for _ in range(6):  # not the candidates of a space alone
        architecture = type(full)(
            {width: draw.randint(1, size) for width, size in full.widths.items()},
            {depth: draw.randint(1, size) for depth, size in full.depths.items()},
        )
        small = derive(model, graph, architecture)
        assert relative(mask(model, graph, architecture)(inputs), small(inputs)) < 1e-9


@pytest.mark.parametrize("name", nets.ALL)
def test_every_layer_is_searched_or_frozen_with_a_reason(name):
    model = nets.ALL[name]()
    graph = trace(model, images())
    frozen = {item.axis for item in graph.frozen}
    searched = {
        f"{parameter.name}[0]"
        for layer in graph.layers
        for parameter in layer.parameters
        if parameter.layouts[0:1] != (None,)
    }
    for path, module in model.named_modules():
        # a weight that two layers share stands under one of its names
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "tied weights":
            assert f"{path}.weight[0]" in frozen | searched
    assert all(item.reason for item in graph.frozen)


EXPECTED = {  # widths by name, depths by name
    "plain": ({"first.0": 8, "second.0": 12}, {}),
    "without norm": ({"first": 8, "second": 12, "third": 10}, {}),
    "residual": ({"stem.0": 8, "stage.0.inner.0": 6, "stage.1.inner.0": 6, "stage.2.inner.0": 6}, {"stage": 3}),
    "sequential residual": ({"0": 8, "1.inner.0": 6, "2.inner.0": 6}, {"1": 3}),
    "concat": ({"left.0": 8, "right": 6, "last.0": 10}, {}),
    "squeeze-excite": ({"conv.0": 12, "squeeze": 4}, {}),
    "depthwise": ({"expand.0": 8, "project.0": 10}, {}),
    "depthwise with multiplier": ({"expand.0": 8, "project.0": 10}, {}),
    "flatten to linear": ({"conv.0": 6, "hidden": 10}, {}),
    "shared": ({"stem.0": 8}, {}),
    "shared in blocks": (
        {"stem.0": 8, "stage.0.inner.0": 6, "stage.1.inner.0": 6}, {"stage": 3},
    ),
    "two names": (
        {"stem.0": 8, "stage.0.inner.0": 6, "stage.1.inner.0": 6, "stage.2.inner.0": 6, "one.0": 10}, {"stage": 3},
    ),
    "lends to stages": (
        {
            "stem.0": 8, "one.0.inner.0": 6, "one.1.inner.0": 6, "one.2.inner.0": 6,
            "two.0.inner.0": 6, "two.3.inner.0": 6,
        },
        {"one": 3, "two": 4},
    ),
    "rolled": ({"stem.0": 8, "last.0": 10}, {}),
    "pixel shuffle": ({"stem.0": 4, "last.0": 10}, {}),
    "grouped": ({"first.0": 4, "grouped": 4, "last.0": 10}, {}),
    "own forwards": ({"conv": 8, "last.0": 10}, {}),
    "shuffled": ({"stem.0": 4, "last.0": 10}, {}),
    "chunked": ({"stem.0": 4, "branch.0": 4, "last.0": 10}, {}),
    "transposed": ({"stem.0": 8, "up": 6, "last.0": 10}, {}),
    "input added": ({"first.0": 8, "last.0": 6}, {}),
    "layer norm": ({"conv.0": 8}, {}),
    "reads a weight": ({}, {}),
    "various": ({"first.0": 8, "second.0": 6}, {}),
    "standardised": ({"first": 8, "second": 6, "third": 4, "grouped": 5}, {}),
    "masked": ({"first": 8, "second": 6, "third": 4, "grouped": 5}, {}),
    "recurrent": ({"conv.0": 8, "tall": 6, "mixed": 7}, {}),
    "own norms": ({"first": 8, "second": 10, "third": 6}, {}),
    "averages that are no norms": ({"reads.layer": 8, "second.0": 12}, {}),
    "best class": ({"first.0": 8}, {}),
    "nested": ({"bottom.0": 10, "downs.0.0": 8, "downs.1.0": 12, "ups.0.0": 6, "ups.1.0": 8}, {}),
    "statistics": ({"first.0": 8, "second.0": 6}, {}),
    "listed parameters": ({"stem.0": 8}, {}),
    "attention across": (
        {"patches": 12, "across": 3, "blocks.0.attention.qkv": 3, "blocks.0.mlp.0": 10, "pooling": 4}, {},
    ),
    "resampled": ({"first.0": 8, "last.0": 6}, {}),
    "embedded positions": ({"patches": 12, "blocks.0.attention.qkv": 3, "blocks.0.mlp.0": 10}, {}),
    "functional norms": ({"third.0": 10}, {}),
    "parametrised": ({"last.0": 10}, {}),
    "auxiliary head": ({"first.0": 8, "second.0": 10}, {}),
    "hidden region": ({"before.0": 8, "inside.0": 6, "after.0": 10}, {}),
    "convnext": ({"stem": 8, "stage.0.grow": 12, "stage.1.grow": 10, "stage.2.grow": 14}, {"stage": 3}),
    "attention": (
        {
            "patches": 12,
            **{f"blocks.{block}.attention.qkv": heads for block, heads in enumerate((3, 2, 4))},
            **{f"blocks.{block}.mlp.0": 10 for block in range(3)},
        },
        {"blocks": 3},
    ),
    "attention as wide as its input": ({"patches": 3, "blocks.0.mlp.0": 10, "blocks.1.mlp.0": 10}, {"blocks": 2}),
    "separate attention": ({"patches": 12, "blocks.0.attention.query": 3, "blocks.0.mlp.0": 10}, {}),
    "einsum attention": (
        {"patches": 12, "blocks.0.attention.value": 8, "blocks.0.mlp.0": 10}, {},
    ),
    "torch attention": (
        {
            "patches": 12,
            "blocks.0.attention.inner": 3, "blocks.0.mlp.0": 10, "blocks.1.attention.inner": 4, "blocks.1.mlp.0": 10,
        },
        {"blocks": 2},
    ),
    "torch encoder layer": ({"patches": 12, "layer.self_attn": 3, "layer.linear1": 10}, {}),
    "attention weights": ({"patches": 12, "inner.out_proj": 12}, {}),
    "mixer": ({"patches": 12, "over_channels.0": 10}, {}),
    "mixer of convolutions": ({"patches": 12, "over_channels.0": 10}, {}),
    "group norms": ({"one": 8, "two": 6, "all": 6, "last": 10}, {}),
    "rms norm": ({"conv": 8, "hidden": 10}, {}),
    "gated": ({"first": 8, "second": 6, "third": 4}, {}),
    "split": ({"stem": 7, "stem:2": 5, "parts.0": 4, "parts.1": 6, "last": 8}, {}),
    "one and three dimensions": ({"volume": 8, "up": 10, "line": 6}, {}),
    "interleaved": ({"left": 6, "last": 8}, {}),
    "rotary": ({"patches": 12, "blocks.0.attention.query": 3, "blocks.0.mlp.0": 10}, {}),
    "asked table": ({"patches": 12, "blocks.0.attention.qkv": 3, "blocks.0.mlp.0": 10}, {}),
    "own matrices": ({"patches": 12, **{f"layers.{place}": 12 for place in range(5)}}, {}),
    "joined bias": ({"patches": 12, "blocks.0.attention.qkv": 3, "blocks.0.mlp.0": 10}, {}),
    "lengths by name": ({"patches": 12, "blocks.0.attention.qkv": 4, "blocks.0.mlp.0": 10}, {}),
    "scanned": ({"stem": 6, "into": 10}, {}),
    "between channels": ({"stem": 6, "asks": 8}, {}),
    "lent": ({"stem": 10}, {"blocks": 2}),
    "cascaded": ({"stem": 10, "one": 6, "proj": 10}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_toy_nets_have_the_widths_one_reads_off_their_code(name):
    full = nets.graph_of(name).full
    assert (full.widths, full.depths) == EXPECTED[name]


REASONS = {
    "padded shortcut": ("wide.0", "is combined with values that are not channels"),
    "unknown operation": ("conv.0", "passes the operation cummax, which has no rule"),
    "input added": ("back.0", "is combined with values that are not channels"),
    "spatial attention": ("gate", "one channel acts on many (it is broadcast over channels)"),
    "subclassed": ("own", "the cut model differs from the masked one by"),
    "functional norms": ("first.0", "is normalised by the model, which has no weights that could follow a cut"),
    "parametrised": ("spectral", "its weight is parametrised; torch.nn.utils.parametrize.remove_parametrizations"),
    "einsum attention": ("blocks.0.attention.query", "einsum sums over it; of attention, only whole heads are cut"),
    "mixer": ("over_tokens.0", "mixes positions, not channels"),
    "mixer of convolutions": ("over_tokens.0", "mixes positions, not channels"),
    "attention weights": ("inner", "is reduced over channels by mean"),
    "auxiliary head": ("auxiliary.2", "output of the model"),
    "averages that are no norms": ("makes.layer", "is reduced over channels by mean"),
    "best class": ("classes", "is reduced over channels by max"),
    "scanned": ("parts", "one channel acts on many (it is broadcast over channels)"),
    "between channels": ("answers", "matmul pairs every channel with every other"),
}


def test_an_example_that_does_not_fit_is_told_from_a_model_that_cannot_be_captured():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, one, other):
            return self.conv(one + other)

    class Branches(TwoInputs):
        def forward(self, one):
            return self.conv(one) if float(one.sum()) > 0 else self.conv(-one)

    with pytest.raises(ModelError, match="TwoInputs does not run on an example of shape .*all the inputs"):
        trace(TwoInputs(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match="cannot capture Branches.*depends on values of tensors"):
        trace(Branches(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", REASONS)
def test_what_has_no_rule_is_frozen_with_the_reason(name):
    layer, reason = REASONS[name]
    graph = nets.graph_of(name)
    axes = (f"{layer}.weight[0]", f"{layer}.in_proj_weight[0]")
    reasons = [item.reason for item in graph.frozen if item.axis in axes]
    assert any(reason in found for found in reasons), reasons


def test_a_standardised_convolution_that_is_the_whole_model_is_seen():
    graph = trace(nets.Standardised(3, 8, 3), torch.zeros(1, 3, 8, 8))
    assert [(item.axis, item.reason) for item in graph.frozen] == [("weight[0]", "output of the model")]
    assert graph.macs() == 8 * 3 * 9 * 36


def test_a_weight_that_is_standardised_keeps_two_numbers():
    model = perturbed(nets.StandardisedNet(kernel=1))
    graph = trace(model, images())
    excluded = {width.name: width.excluded for width in graph.widths}
    assert excluded == {"first": (1,), "second": (1,), "third": (1,), "grouped": ()}
    space = SearchSpace.of(graph, candidates={"*": [1, 2, 0.1]})
    assert {name: sizes[0] for name, sizes in space.widths.items()} == {
        "first": 2, "second": 2, "third": 2, "grouped": 1,
    }  # fmt: skip
    derive(model, graph, space.smallest)(images())
    with pytest.raises(ArchitectureError, match="'first' keeps 1, a size that its forward does not allow"):
        derive(model, graph, replace(space.smallest, widths={**space.smallest.widths, "first": 1}))
    assert Graph.from_json(graph.to_json()) == graph


def test_a_weight_that_is_a_product_of_parameters_is_parametrised_and_not_unused():
    model = nets.Plain()
    nn.utils.parametrizations.orthogonal(model.first[0])
    (found,) = [item.reason for item in trace(model, images()).frozen if item.axis == "first.0.weight[0]"]
    assert found.startswith("its weight is parametrised")


def test_what_the_reason_of_a_parametrised_weight_advises_opens_it():
    model = nets.ALL["parametrised"]()
    for layer in (model.spectral, model.weighted):
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    graph = trace(perturbed(model), images())
    assert {"spectral", "weighted"} <= graph.full.widths.keys()


class Unused(nn.Module):
    """A layer that never runs."""

    def __init__(self):
        super().__init__()
        self.plain, self.never = nets.Plain(), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.plain(x)


def test_layers_the_trace_never_meets_are_named_as_neither_searched_nor_counted():
    reasons = {item.axis: item.reason for item in trace(Unused(), images()).frozen}
    assert "not in the captured graph, and not counted" in reasons["never.weight[0]"]


def test_no_layer_that_runs_is_said_not_to():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.one, self.other = (
                nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8),
                nn.Linear(8, 8),
                nn.Linear(8, 8),
            )
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(self.up(x).mean((2, 3))).relu())

    lent = nn.Conv2d(8, 8, 1)
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), lent, lent, lent, Shares()).eval(), images())
    assert not [item for item in graph.frozen if "never runs" in item.reason]


def test_a_layer_that_is_the_whole_model_is_frozen_for_one_reason():
    graph = trace(nn.Conv2d(3, 4, 3), images())
    assert [(item.axis, item.reason) for item in graph.frozen] == [("weight[0]", "output of the model")]


def test_blocks_under_both_a_tap_and_a_block_stay():
    graph = trace(perturbed(nets.Tapped()), images())
    assert [depth.blocks for depth in graph.depths] == [("stage.0", "stage.1"), ("stage.2", "stage.3")]


def test_a_depth_and_a_width_never_share_a_name(named):
    assert not set(named.graph.full.widths) & set(named.graph.full.depths)


def test_several_inputs_and_a_mapping_as_output_are_fine():
    model = perturbed(nets.TwoInputs())
    graph = trace(model, (images(), images(seed=1)))
    assert graph.full.widths == {"left.0": 8}
    assert graph.input_shapes == ((4, 3, 8, 8), (4, 3, 8, 8))
    small = derive(model, graph, SearchSpace.of(graph).smallest)
    assert small(images(), images(seed=1))["logits"].shape == (4, 5)


def test_a_forward_that_names_its_batch_size_is_traced_with_that_size():
    graph = trace(nets.FixedBatch(), images(batch=4))
    assert graph.full.widths == {"conv.0": 8}


def test_tracing_changes_neither_the_model_nor_the_random_state():
    model = nets.Residual().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    trace(model, images())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_costs_are_per_sample_whatever_the_batch_of_the_example():
    model = nets.Residual()
    assert trace(model, images(batch=1)).macs() == trace(model, images(batch=4)).macs()


def test_the_values_of_the_example_do_not_matter():
    model = perturbed(nets.Concat())
    assert trace(model, torch.zeros(4, 3, 8, 8)) == trace(model, images())


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def test_a_forward_that_depends_on_values_is_an_error_that_says_so_and_where():
    with pytest.raises(
        ModelError,
        match=r"torch.export cannot capture DataDependent: .*\(line \d+ of \S*test_trace.py: return self.conv.x. if "
        r"x.sum.*\)\. Rewrite the part of forward that depends on values",
    ):
        trace(DataDependent(), images())


def test_a_forward_that_writes_its_weights_is_an_error_that_says_how_to_merge_them():
    class Merging(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.merged = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            self.merged.weight.data = 2 * self.branch.weight.data
            return self.merged(x)

    with pytest.raises(ModelError, match=r"cannot capture Merging: .*reads or sets \.data .*let the model merge them"):
        trace(Merging(), images())


def test_of_a_result_that_cannot_be_captured_the_error_names_the_way_out():
    @dataclass
    class Result:
        scores: torch.Tensor

    class Returns(nets.Plain):
        def forward(self, x):
            return Result(super().forward(x))

    with pytest.raises(
        ModelError, match="Returns: .*Return a tuple or a dict instead of a Result, or call torch.export.register_datac"
    ):
        trace(Returns(), images())


def test_an_example_that_does_not_fit_is_an_error():
    with pytest.raises(
        ModelError, match="Plain does not run on an example of shape .*of the size and channels it was built for"
    ):
        trace(nets.Plain(), torch.zeros(1, 4, 8, 8))
    with pytest.raises(ModelError, match=r"scalar type Long .*; v2.ToDtype\(torch.float32, scale=True\) makes"):
        trace(nets.Plain(), images().long())


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ModelError, match="ReLU has no parameters; there is nothing to prune"):
        trace(nn.ReLU(), images())


@pytest.mark.parametrize("example", [(), "text", [3], torch.tensor(1.0), None])
def test_an_example_that_is_no_batch_of_tensors_is_refused(example):
    with pytest.raises(ModelError, match="the example must be one tensor or several, with a batch dimension first"):
        trace(nets.Plain(), example)


def test_a_model_that_cannot_be_copied_is_an_error_of_ours():
    model = nets.Plain()
    model.cache = model.first[0].weight * 2  # not a leaf: torch refuses to copy it
    with pytest.raises(ModelError, match="Plain cannot be copied"):
        trace(model, images())


def test_of_masks_that_are_still_computed_the_error_says_how_to_make_them_permanent():
    model = nets.Plain()
    prune.l1_unstructured(model.first[0], "weight", 0.5)
    with pytest.raises(ModelError, match="cannot be copied.*torch.nn.utils.prune.remove makes masks permanent"):
        trace(model, images())
    prune.remove(model.first[0], "weight")
    assert trace(model, images()).widths


def test_a_single_layer_has_nothing_to_choose():
    graph = trace(nn.Linear(4, 3), torch.zeros(2, 4))
    assert (graph.widths, graph.depths, graph.macs(), graph.params()) == ((), (), 12, 15)


class Unseen(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale, self.conv, self.last = scale, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.conv(x)) * self.scale


@pytest.mark.parametrize("scale", [float("inf"), 0.0])
def test_a_model_whose_outputs_prove_nothing_is_frozen(scale):
    graph = trace(Unseen(scale), images())
    assert graph.widths == ()
    reasons = {item.axis: item.reason for item in graph.frozen}
    assert "the outputs of the model are not finite, or nothing but zeros" in reasons["conv.weight[0]"]


class Unforeseen(nn.Module):
    """A convolution of one sample without its batch dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(self.second(self.first(x)[0]).mean((1, 2)))


def test_a_layer_called_in_an_unusual_way_is_frozen():
    model = perturbed(Unforeseen())
    graph = trace(model, images(batch=1))
    reasons = {item.axis: item.reason for item in graph.frozen}
    assert "conv2d without a batch dimension is not supported" in reasons["second.weight[0]"]
    assert graph.macs() == counted_macs(model, images(batch=1))


class ThreeFactors(nn.Module):
    """A product that no rule knows, and one with fewer keys than queries."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(self.stem(x).relu()).flatten(2)
        x = torch.einsum("ncp,ncq,ndq->ndp", x, x, x)
        heads = x.unflatten(1, (4, 2)).transpose(2, 3)
        x = nn.functional.scaled_dot_product_attention(heads, heads[:, :2], heads[:, :2], enable_gqa=True)
        return self.head(x.transpose(2, 3).flatten(1, 2).mean(2))


def test_what_no_rule_counts_is_counted_as_torch_does():
    model = ThreeFactors().eval()
    graph = trace(model, images())
    smallest = SearchSpace.of(graph).smallest
    small = derive(model, graph, smallest)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert graph.macs() == counted_macs(model, images())
        assert graph.macs(smallest) == counted_macs(small, images())
    assert smallest.widths["stem"] < 6


class ManyWindows(nn.Module):
    """Attention whose bias is one table of positions for many windows, with a mask that differs between them."""

    def __init__(self):
        super().__init__()
        self.heads, self.windows, positions = 6, 16, 49
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 5)
        self.table = nn.Parameter(torch.randn(169, self.heads))
        self.register_buffer("places", torch.randint(169, (positions * positions,)))
        self.register_buffer("mask", torch.randn(self.windows, 1, positions, positions))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places].view(49, 49, -1).permute(2, 0, 1).unsqueeze(0) + self.mask
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


def test_a_table_of_positions_is_followed_through_many_masked_windows():
    model = ManyWindows().eval()
    graph = trace(model, torch.randn(16, 49, 48))
    assert graph.full.widths == {"qkv": 6}


class Watched(nn.Module):
    """A forward that looks at its values, and runs a layer for nothing."""

    def __init__(self):
        super().__init__()
        self.conv, self.unread, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x).relu()
        self.seen = x.detach().norm(dim=1)
        self.unread(x).sum(1)
        return self.head(x.mean((2, 3)))


def test_what_nobody_reads_binds_no_channels():
    model = Watched().eval()
    graph = trace(model, images())
    assert graph.full.widths["conv"] == 8
    assert graph.macs() == counted_macs(model, images())
    smallest = SearchSpace.of(graph).smallest
    small = derive(model, graph, smallest)
    assert small.unread.in_channels == smallest.widths["conv"] < 8
    assert graph.macs(smallest) == counted_macs(small, images())


class PooledForNothing(nn.Module):
    """A head with a residual sum that nobody reads, as the pooling head of SigLIP behind a classifier of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.mlp, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Linear(8, 6),
            nn.Linear(6, 6),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        pooled = self.pool(x)
        pooled = pooled + self.mlp(pooled)
        self.seen = (pooled - pooled.mean()).abs().sum()
        return self.head(x)


def test_sums_behind_layers_that_nobody_reads_bind_their_channels():
    model = PooledForNothing().eval()
    graph = trace(model, images())
    assert graph.full.widths == {"conv": 8, "pool": 6}
    assert [item.reason for item in graph.frozen] == ["output of the model"]
    smallest = replace(SearchSpace.of(graph).smallest, depths=graph.full.depths)
    small = derive(model, graph, smallest)
    assert small.mlp.weight.shape == (smallest.widths["pool"],) * 2 < (6, 6)
    assert graph.macs(smallest) == counted_macs(small, images())


def test_what_a_forward_keeps_stays_out_of_the_model():
    model = nets.Detects().eval()
    trace(model, images())
    assert model.anchors is None
    assert copy.deepcopy(model)(images()).shape == (4, 5, 80)


def test_layers_that_a_forward_finds_in_a_list_are_opened():
    graph = nets.graph_of("listed")
    assert graph.full.widths == {"0": 8, "3": 6}
    assert [item.reason for item in graph.frozen] == ["output of the model"]


class ListedBlocks(nn.Module):
    """Its forward goes through a list of the blocks of a registered one."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nets.conv_bn(3, 8), nn.ModuleList(nets.Block(8, 6) for _ in range(3))
        self.order, self.fc = list(self.blocks), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.order:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def test_blocks_that_a_forward_finds_in_a_list_can_be_dropped():
    model = nets.perturbed(ListedBlocks())
    graph = trace(model, images())
    assert graph.full.depths == {"blocks": 3}
    smallest = SearchSpace.of(graph).smallest
    assert graph.macs(smallest) == counted_macs(derive(model, graph, smallest), images())


def test_queries_that_are_learned_are_cut_with_what_reads_them():
    graph = nets.graph_of("decoder")
    assert graph.full.widths["queries"] == 10
    tied = {parameter.name for layer in graph.layers for parameter in layer.parameters
            if any(run.width == "queries" for layout in parameter.layouts for run in layout or ())}  # fmt: skip
    assert {"queries.weight", "among.query.weight", "among.value.weight", "across.query.weight", "head.weight"} <= tied
    assert [item.axis for item in graph.frozen] == ["head.weight[0]"]


def test_what_gets_the_shape_of_what_a_module_reads_is_cut_with_it():
    graph = nets.graph_of("pyramid")
    assert graph.full.widths == {"first.across.query": 4, "stem": 12, "grow": 10, "second.across.query": 2}
    assert [item.axis for item in graph.frozen] == ["head.weight[0]"]


@pytest.mark.parametrize("name", ["one head", "one head that checks"])
def test_what_cannot_be_cut_with_what_a_module_reads_is_left_out(name):
    """The values of a single head keep its size."""
    graph = nets.graph_of(name)
    assert graph.full.widths == {"stem": 12}
    tied = {parameter.name for layer in graph.layers for parameter in layer.parameters if parameter.layouts[0]}
    assert {"stem.weight", "reduce.weight", "proj.weight"} <= tied
    assert {"q.weight", "k.weight", "v.weight"}.isdisjoint(tied)


class Resized(nn.Module):
    """Positions of a class token and of patches, these for another number of them, joined again, as in DPT."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 5)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))

    def forward(self, x):
        places = self.positions[:, 1:].transpose(1, 2).reshape(1, -1, 3, 3)
        places = nn.functional.interpolate(places, size=(4, 4), mode="bilinear").flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x).flatten(2).transpose(1, 2)], 1)
        return self.head((x + torch.cat([self.positions[:, :1], places], 1)).mean(1))


def test_positions_are_cut_through_resizing_and_joining():
    graph = trace(Resized(), images())
    assert graph.full.widths == {"stem": 8}
    assert [item.axis for item in graph.frozen] == ["head.weight[0]"]


class OtherName(nn.Module):
    """`torch.concat` is an operation of its own to torch."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nets.head(10)

    def forward(self, x):
        return self.head(torch.concat([self.left(x), self.right(x)], 1).relu())


def test_concat_is_cat():
    graph = trace(OtherName(), images())
    assert graph.full.widths == {"left": 6, "right": 4}
    assert len(graph.frozen) == 1


def test_a_detector_is_cut_through_what_lies_before_its_boxes(capfd):
    class Backbone(nn.Module):
        out_channels = 8

        def __init__(self):
            super().__init__()
            self.near = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
            self.far = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))

        def forward(self, images):
            near = self.near(images)
            return {"0": near, "1": self.far(near)}

    class Raw(nn.Module):
        def __init__(self, detector):
            super().__init__()
            self.detector = detector

        def forward(self, images):
            return self.detector.head(list(self.detector.backbone(images).values()))

    anchors = AnchorGenerator(((8,), (16,)), ((1.0,), (1.0,)))
    detector = RetinaNet(
        Backbone(), 3, anchor_generator=anchors, min_size=32, max_size=32,
        head=RetinaNetHead(8, 1, 3, partial(nn.GroupNorm, 4)),
    ).eval()  # fmt: skip
    with pytest.raises(ModelError, match=r"cannot capture RetinaNet.* or trace a module of your own") as refused:
        trace(detector, torch.zeros(1, 3, 32, 32))
    assert len(str(refused.value)) < 1000  # torch says thousands of characters
    assert capfd.readouterr() == ("", "")  # and prints its graph
    graph = trace(Raw(detector), torch.zeros(1, 3, 32, 32))
    smallest = SearchSpace.of(graph).smallest
    small = derive(Raw(detector), graph, smallest)
    assert graph.open_share == 1
    assert {name: tuple(value.shape) for name, value in small(torch.zeros(2, 3, 32, 32)).items()} == {
        "cls_logits": (2, 80, 3), "bbox_regression": (2, 80, 4),
    }  # fmt: skip
    assert sum(parameter.numel() for parameter in small.parameters()) == graph.params(smallest)
    assert small.detector([torch.rand(3, 32, 32)])[0].keys() == {"boxes", "scores", "labels"}


class Chooses(nn.Module):
    """How many rows the last layer reads depends on their values."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, images):
        rows = self.conv(images).flatten(2).mT.flatten(0, 1)
        return self.last(rows[images[:, 0].flatten() > 0])


def test_a_number_of_rows_that_depends_on_values_is_an_error_of_ours():
    with pytest.raises(ModelError, match=r"how large .* is depends on values .* or trace a module of your own"):
        trace(Chooses(), images())


class MergedLinear(nn.Linear):
    """LoRA as loralib writes it: evaluation adds the low-rank part to the weights, training takes it out."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.low, self.merged = nn.Parameter(torch.randn(self.weight.shape)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.low if mode else self.low
            self.merged = not mode
        return self

    def forward(self, inputs):
        return super().forward(inputs) + (0 if self.merged else F.linear(inputs, self.low))


@pytest.mark.parametrize("training", [True, False])
def test_weights_that_change_with_the_mode_are_not_changed(training):
    torch.manual_seed(0)
    merged, first, second = MergedLinear(8, 8), nn.Linear(3, 8), nn.Linear(8, 8)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), merged, nn.ReLU(), nn.Linear(8, 2)).train(training)
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, torch.randn(1, 3))
    assert [width.name for width in graph.widths] == ["0"], "what merged weights read and make stays"
    small, inputs = derive(model, graph, SearchSpace.of(graph).smallest), torch.randn(1, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training == small.training == training
    torch.testing.assert_close(small.eval()(inputs), small.train()(inputs))


class OwnNorm(nn.Module):
    """Calls torch's layer norm with weights of its own, as ConvNeXt's and many others do."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2], self.gain, self.shift).movedim(-1, 1)


class Larger(nn.Module):
    """The larger half (LightCNN), a learned threshold (FRN)."""

    def __init__(self):
        super().__init__()
        self.conv, self.threshold = nn.Conv2d(8, 12, 1), nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x):
        return torch.max(torch.max(*self.conv(x).chunk(2, 1)), self.threshold)


class Rows(nn.Module):
    """A convolution over all pixels in a row, which are given the shape they had: it makes what it reads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x.flatten(2)).view_as(x)


@pytest.mark.parametrize(
    ("piece", "widths"),
    [
        (OwnNorm(8), {"0.0": 8, "2": 6}),
        (nn.GroupNorm(2, 8, affine=False), {"0.0": 4, "2": 6}),
        (nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2)), {"0.0": 2, "1.1": 4, "2": 6}),
        (nn.Sequential(Larger(), nn.Conv2d(6, 8, 1)), {"0.0": 8, "1.0.conv": 6, "1.1": 8, "2": 6}),
        (Rows(), {"0.0": 8, "2": 6}),
    ],
    ids=["own norm", "norm without weights", "shuffle", "larger", "rows"],
)
def test_channels_pass_norms_without_a_class_shuffles_maxima_and_shapes_of_others(piece, widths):
    net = nn.Sequential(nets.conv_bn(3, 8), piece, nn.Conv2d(8, 6, 1), nets.head(6))
    graph = trace(perturbed(net), images())
    assert graph.full.widths == widths


class Blur(nn.Module):
    """Convolves every channel with one kernel that is not learned, as timm's `BlurPool2d`."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("filt", torch.rand(channels, 1, 3, 3), persistent=False)

    def forward(self, x):
        return F.conv2d(x, self.filt, stride=2, groups=self.channels)


def test_a_kernel_that_is_no_layers_is_cut_with_the_channels_it_blurs():
    model = perturbed(nn.Sequential(nets.conv_bn(3, 8), Blur(8), nn.Conv2d(8, 6, 1), nets.head(6)))
    graph = trace(model, images())
    assert graph.full.widths == {"0.0": 8, "2": 6}
    small = derive(model, graph, SearchSpace.of(graph).smallest)
    assert small[1].channels == len(small[1].filt) == small[0][0].out_channels < 8
    assert graph.macs(SearchSpace.of(graph).smallest) == counted_macs(small, images(batch=1))


def test_layers_that_meet_in_training_alone_are_cut_alike():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mean, self.variance = nets.conv_bn(3, 8), nn.Linear(8, 6), nn.Linear(8, 6)
            self.out = nn.Linear(6, 5)

        def forward(self, x):
            x = self.stem(x).relu().mean((2, 3))
            mean, deviation = self.mean(x), self.variance(x).exp()
            return self.out(mean + deviation * torch.randn_like(deviation) if self.training else mean)

    graph = trace(perturbed(Autoencoder()), images())
    assert graph.full.widths == {"stem.0": 8, "mean": 6}
    assert [width.layers for width in graph.widths if width.name == "mean"] == [("mean", "variance", "out")]


class ClearsPart(nn.Module):
    """A part of a copied bias is set to zero before it is used, as in torchvision's Swin V2."""

    def __init__(self):
        super().__init__()
        self.first, self.linear = nets.conv_bn(3, 6), nn.Linear(6, 8)

    def forward(self, x):
        bias = self.linear.bias.clone()
        bias[2:4].zero_()
        return F.linear(self.first(x).mean((2, 3)), self.linear.weight, bias)


def test_what_is_written_in_place_is_no_reason_to_capture_the_training_too(monkeypatch):
    exports, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *given: exports.append(1) or export(*given))
    assert "first.0" in trace(perturbed(ClearsPart()), images()).full.widths
    assert len(exports) == 1


def test_gains_inside_heads_are_cut_with_heads_alone():
    graph = nets.graph_of("gains of heads")
    widths = {width.name: width.size for width in graph.widths}
    assert (widths["blocks.0.attention.qkv"], widths["blocks.1.attention.qkv"]) == (3, 4)
    assert [item.reason for item in graph.frozen] == ["output of the model"]
    apart = trace(perturbed(Tokens(GainsOfHeads(12, 3, attends=False))), images())
    assert "blocks.0.attention.qkv" not in apart.full.widths
    assert any("several dimensions meet the channels" in item.reason for item in apart.frozen)


def test_a_reader_that_torch_forgets_is_found():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scales", torch.ones(8))

        @torch.amp.autocast("cuda", enabled=False)
        def forward(self, x):
            return torch.linspace(-1, 1, x.shape[1])[:, None] * self.scales

    class Reads(nn.Module):  # a slice for its shape alone, which rotary embeddings of vit-pytorch do
        def __init__(self):
            super().__init__()
            self.inner, self.positions, self.norm, self.head = (
                nn.Linear(8, 8), Positions(), nn.LayerNorm(8), nn.Linear(8, 3)
            )  # fmt: skip

        def forward(self, x):
            x = torch.cat((self.inner(x), x), 1)
            positions = self.positions(x[:, 1:])
            return self.head(self.norm(x)[:, 1:] + positions)

    assert trace(Reads(), torch.zeros(2, 5, 8)).macs() == 5 * 8 * 8 + 9 * 8 * 3


def test_a_layer_that_convolves_with_parts_of_its_weight_stays_whole():
    class HalfByHalf(nn.Conv2d):  # as octave convolutions
        def forward(self, images):
            half = self.out_channels // 2
            return F.conv2d(images, self.weight[:half]) + F.conv2d(images, self.weight[half:])

    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), HalfByHalf(8, 12, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)
    )
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    assert list(graph.full.widths) == ["3"]
    assert graph.macs() == 16 * (3 * 8 + 8 * 6 * 2 + 6 * 8 + 8 * 4)
    reasons = {item.axis: item.reason for item in graph.frozen}
    assert "its weight is computed in forward" in reasons["1.weight[0]"]
    assert not any("never runs" in reason for reason in reasons.values())
