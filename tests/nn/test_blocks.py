from dataclasses import replace

import nets
import pytest
import torch
from nets import images, perturbed
from torch import nn

from tas.architecture import Architecture
from tas.graph import Depth, Graph
from tas.nn.mixed_depth import DepthState, OpenBlock
from tas.nn.surgery import cut
from tas.pipeline.trace import trace


class Listed(nn.Module):
    """A list of children that the forward runs in a row."""

    def __init__(self, *children: nn.Module, features: int = 8):
        super().__init__()
        self.stem, self.blocks, self.head = nets.conv_bn(3, 8), nn.ModuleList(children), nets.head(features)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class NotResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nets.conv_bn(8, 8)

    def forward(self, x):
        return self.conv(x).relu()


def block() -> nn.Module:
    return nets.Block(8, 4)


@pytest.mark.parametrize(
    ("children", "wanted"),
    [
        ([block() for _ in range(4)], {"blocks": ("blocks.0", "blocks.1", "blocks.2", "blocks.3")}),
        # a lead that is no residual block stays, and the depth begins with it
        ([NotResidual(), block(), block()], {"blocks": ("blocks.0", "blocks.1", "blocks.2")}),
        # two runs in one container are named by their first block that may go
        (
            [block(), block(), NotResidual(), block()],
            {"blocks.1": ("blocks.0", "blocks.1"), "blocks.3": ("blocks.2", "blocks.3")},
        ),
        ([block()], {}),
        ([NotResidual(), NotResidual()], {}),
    ],
)
def test_runs_of_residual_blocks_are_depths(children, wanted):
    graph = trace(perturbed(Listed(*children)), images())
    assert {depth.name: depth.blocks for depth in graph.depths} == wanted


class Named(nn.Module):
    """Blocks that are attributes, registered in another order than the forward runs them in."""

    def __init__(self, block=block):
        super().__init__()
        self.last, self.first, self.middle = block(), block(), block()
        self.stem, self.head = nets.conv_bn(3, 8), nets.head(8)

    def forward(self, x):
        return self.head(self.last(self.middle(self.first(self.stem(x).relu()))))


def test_blocks_that_are_attributes_are_depths_in_the_order_of_their_calls():
    model = perturbed(Named())
    graph = trace(model, images())
    assert graph.depths == (Depth("middle", ("first", "middle", "last")),)
    small = cut(model, graph, replace(graph.full, depths={"middle": 1}))
    assert not any(small.get_submodule(path).state_dict() for path in ("middle", "last"))
    torch.testing.assert_close(small(images()), model.head(model.first(model.stem(images()).relu())))


def test_blocks_that_are_attributes_of_blocks_of_a_list_go_with_them():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = block(), block()

        def forward(self, x):
            return self.second(self.first(x))

    graph = trace(perturbed(Listed(Pair(), Pair())), images())
    assert graph.depths == (Depth("blocks", ("blocks.0", "blocks.1")),)


def test_blocks_may_change_in_place_what_they_take():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.conv, self.norm = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x):
            x = self.relu(x)
            return x + self.norm(self.conv(x))

    graph = trace(perturbed(Listed(InPlace(), InPlace(), InPlace())), images())
    assert [depth.blocks for depth in graph.depths] == [("blocks.0", "blocks.1", "blocks.2")]


class Stack(nn.Module):
    """Sums outside of what they add: no part of it is a block."""

    def __init__(self, parts: int):
        super().__init__()
        self.parts = nn.ModuleList([NotResidual() for _ in range(parts)])

    def forward(self, x):
        for part in self.parts:
            x = part(x) + x
        return x


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [(2, [("stem", "encoder")]), (3, [("stem", "encoder.parts.0", "encoder.parts.1", "encoder.parts.2")])],
)
def test_a_stack_of_blocks_does_not_go_as_a_whole(parts, wanted):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.encoder, self.head = nets.conv_bn(3, 8), Stack(parts), nets.head(8)

        def forward(self, x):
            return self.head(self.encoder(self.stem(x)))

    assert [depth.blocks for depth in trace(perturbed(Encoder()), images()).depths] == wanted


def test_runs_in_a_dictionary_end_where_others_read_them_too():
    class Taps(nn.ModuleDict):  # as the backbones of torchvision's detectors
        def forward(self, x):
            means = []
            for name, child in self.items():
                x = child(x)
                means += [x.mean((2, 3))] if name in ("b", "d") else []
            return torch.cat(means, 1)

    body = Taps({"a": nets.conv_bn(3, 8), "b": block(), "c": block(), "d": block()})
    graph = trace(perturbed(nn.Sequential(body, nn.Linear(16, 5))), images())
    assert {depth.name: depth.blocks for depth in graph.depths} == {"0.b": ("0.a", "0.b"), "0.d": ("0.c", "0.d")}


def test_of_nested_blocks_the_inner_ones_can_be_dropped_one_by_one():
    class Group(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(block(), block())

        def forward(self, x):
            return x + self.inside(x)

    graph = trace(perturbed(Listed(Group(), Group(), Group())), images())
    assert [depth.blocks for depth in graph.depths] == [
        (f"blocks.{group}.inside.0", f"blocks.{group}.inside.1") for group in range(3)
    ]


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return 2 * x


def run(state: DepthState, blocks: list[nn.Module]) -> float:
    x = torch.ones(())
    for position, item in enumerate(blocks):
        x = OpenBlock(item, state, position)(x)
    return float(x)


def test_a_mixture_of_depths_weighs_the_outputs_and_runs_no_block_beyond_the_deepest():
    blocks = [Double() for _ in range(4)]
    state = DepthState((1, 2, 3, 4), 4)
    assert run(state, blocks) == 16
    state.draw([0, 2], torch.tensor([0.25, 0.75]))
    assert run(state, blocks) == pytest.approx(0.25 * 2 + 0.75 * 8)
    assert [item.calls for item in blocks] == [2, 2, 2, 1]
    state.pick(1)
    assert run(state, blocks) == 4
    assert [item.calls for item in blocks] == [3, 3, 2, 1]


def test_a_dense_mixture_of_depths_is_the_same_sum():
    state = DepthState((1, 3), 3)
    state.draw_dense(torch.tensor([1, 0]), torch.tensor([0.75, 0.25]))
    assert run(state, [Double() for _ in range(3)]) == pytest.approx(0.25 * 2 + 0.75 * 8)


def test_a_candidate_drawn_twice_counts_twice():
    state = DepthState((1, 2), 2)
    state.draw([0, 1, 0], torch.tensor([0.2, 0.5, 0.3]))
    assert run(state, [Double(), Double()]) == pytest.approx(0.5 * 2 + 0.5 * 4)


class InTuples(nn.Module):
    """A block whose result comes in a tuple, as those of Hugging Face's encoders do."""

    def __init__(self, items: int):
        super().__init__()
        self.block, self.items = block(), items

    def forward(self, x):
        x = self.block(x)
        return (x, None)[: self.items]


class Encoder(Listed):
    """Blocks one behind the other in tuples; a lead may give its result alone."""

    def forward(self, x):
        x = self.stem(x)
        for child in self.blocks:
            x = child(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x)


@pytest.mark.parametrize("items", [1, 2])
@pytest.mark.parametrize("lead", [True, False])
def test_blocks_that_return_tuples_are_dropped_in_tuples(items, lead):
    first = block() if lead else InTuples(items)
    model = perturbed(Encoder(first, *[InTuples(items) for _ in range(3)]))
    graph = trace(model, images())  # its self check runs both executions
    (depth,) = graph.depths
    assert (len(depth.blocks), depth.returns) == (4, items)
    assert [item.reason for item in graph.frozen] == ["output of the model"]
    again = Graph.from_json(graph.to_json())
    for kept in (1, 2, 4):
        architecture = Architecture(graph.full.widths, {depth.name: kept})
        small = cut(model, again, architecture)
        wanted = model.stem(images())
        for place, child in enumerate(list(model.blocks)[:kept]):
            wanted = child(wanted) if place == 0 and lead else child(wanted)[0]
        torch.testing.assert_close(small(images()), model.head(wanted))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_block_that_is_dropped_hands_on_the_sizes_that_it_was_given(by_name):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 8)

        def forward(self, tokens, size):
            return tokens + self.outer(self.inner(tokens.mT.unflatten(2, size)).flatten(2).mT.relu()), size

    class Rows(Listed):  # as MViT does
        def forward(self, x):
            x = self.stem(x)
            x, size = x.flatten(2).mT, tuple(x.shape[2:])
            for child in self.blocks:
                x, size = child(size=size, tokens=x) if by_name else child(x, size)
            return self.head(x.mT.unflatten(2, size))

    model = perturbed(Rows(Sized(), Sized(), Sized()))
    graph = trace(model, images())  # its self check runs both executions
    assert graph.depths == (Depth("blocks", ("blocks.0", "blocks.1", "blocks.2"), returns=2),)
    small = cut(model, graph, replace(graph.full, depths={"blocks": 1}))
    stem = model.stem(images())
    kept, size = model.blocks[0](stem.flatten(2).mT, tuple(stem.shape[2:]))
    torch.testing.assert_close(small(images()), model.head(kept.mT.unflatten(2, size)))


def test_a_forward_that_needs_more_than_the_first_of_a_tuple_keeps_its_blocks():
    class Tells(InTuples):
        def forward(self, x):
            return self.block(x), "a word"

    class Needs(Encoder):
        def forward(self, x):
            x = self.stem(x)
            for child in self.blocks:
                x, word = child(x)
                word.split()
            return self.head(x)

    graph = trace(perturbed(Needs(*[Tells(2) for _ in range(3)])), images())
    assert graph.depths == ()
    (found,) = [item for item in graph.frozen if item.axis == "blocks"]
    assert "'NoneType' object has no attribute 'split'" in found.reason


def test_blocks_are_found_whatever_kind_of_numbers_is_the_default():
    model, example = perturbed(Encoder(block(), InTuples(2), InTuples(2))), images()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        graph = trace(model, example)
    finally:
        torch.set_default_dtype(before)
    assert [(len(depth.blocks), depth.returns) for depth in graph.depths] == [(3, 2)]


def test_a_lead_may_give_other_tensors_first():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.other, self.conv = nn.Conv2d(8, 4, 1), nets.conv_bn(8, 8)

        def forward(self, x):
            return self.other(x).relu(), self.conv(x)

    class Second(Encoder):
        def forward(self, x):
            x = self.stem(x)
            for child in self.blocks:
                x = child(x)
                x = x[1] if isinstance(x, tuple) else x
            return self.head(x)

    graph = trace(perturbed(Second(Two(), block(), block())), images())
    assert [depth.blocks for depth in graph.depths] == [("blocks.0", "blocks.1", "blocks.2")]


class Conditioned(nn.Module):
    """A residual block that reads more than the stream: a table of positions, say, or what a decoder attends to."""

    def __init__(self):
        super().__init__()
        self.conv, self.read, self.merge = nets.conv_bn(8, 8), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x, memory, scale: float = 1.0):
        return x + scale * self.conv(x).relu() + self.merge(self.read(memory).relu()).mean(1)[:, :, None, None]


@pytest.mark.parametrize("by_name", [False, True])
def test_blocks_may_read_more_than_the_stream(by_name):
    class Decoder(Listed):
        def __init__(self, *children):
            super().__init__(*children)
            self.encoder = nn.Conv2d(3, 8, 1)

        def forward(self, images):
            x, memory = self.stem(images), self.encoder(images).flatten(2).mT
            for child in self.blocks:
                x = child(memory=memory, x=x) if by_name else child(x, memory, 0.5)
            return self.head(x)

    model = perturbed(Decoder(*[Conditioned() for _ in range(3)]))
    graph = trace(model, images())  # its self check runs both executions
    assert [depth.blocks for depth in graph.depths] == [("blocks.0", "blocks.1", "blocks.2")]
    small = cut(model, graph, replace(graph.full, depths={"blocks": 1}))
    stem, memory = model.stem(images()), model.encoder(images()).flatten(2).mT
    kept = model.blocks[0](stem, memory, 1.0 if by_name else 0.5)
    torch.testing.assert_close(small(images()), model.head(kept))


@pytest.mark.parametrize("channels", [8, 6])
def test_blocks_whose_stream_is_not_what_they_take_first_stay(channels):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.read = nets.conv_bn(8, 8), nn.Conv2d(channels, 8, 1)

        def forward(self, memory, x):
            return x + self.conv(x).relu() + self.read(memory)

    class Decoder(Listed):
        def __init__(self, *children):
            super().__init__(*children)
            self.encoder = nn.Conv2d(3, channels, 1)

        def forward(self, images):
            x, memory = self.stem(images), self.encoder(images)
            for child in self.blocks:
                x = child(memory, x)
            return self.head(x)

    graph = trace(perturbed(Decoder(*[Turned() for _ in range(3)])), images())
    assert graph.depths == ()


def test_blocks_with_a_part_under_other_rules_of_autocast():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nets.conv_bn(8, 8)

        def forward(self, x):
            found = self.conv(x)
            with torch.autocast("cpu", enabled=False):
                found = found.relu() * 2
            return x + found

    graph = trace(perturbed(Listed(Mixed(), Mixed(), Mixed())), images())
    assert [depth.blocks for depth in graph.depths] == [("blocks.0", "blocks.1", "blocks.2")]


def test_a_stack_of_branches_in_a_list_is_left_to_them():
    graph = trace(perturbed(Listed(Stack(4), NotResidual(), Stack(3))), images())
    assert {depth.name: depth.blocks for depth in graph.depths} == {
        "blocks.0.parts": ("stem", *(f"blocks.0.parts.{place}" for place in range(4))),
        "blocks": ("blocks.1", "blocks.2"),
    }
