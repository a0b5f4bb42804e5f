from dataclasses import replace

import nets
import pytest
import torch
from nets import images, perturbed
from torch import nn

from tas.architecture import Architecture
from tas.graph import Depth, Graph
from tas.nn.mixed_depth import DepthState, OpenBranch
from tas.nn.supernet import Supernet
from tas.nn.surgery import cut
from tas.pipeline.trace import trace
from tas.space import SearchSpace


def branch() -> nn.Module:
    return nn.Sequential(nets.conv_bn(8, 4), nn.ReLU(), nets.conv_bn(4, 8))


class Net(nn.Module):
    """Does what `add` of a subclass says between a stem and a head, both with channels of their own."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        self.stem, self.head = nets.conv_bn(3, 8), nets.head(8)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.head(self.add(self.stem(x).relu()))


class Pairs(Net):
    """As encoders of vit-pytorch do, with a list of two for every layer."""

    def __init__(self, count: int = 2, branch=branch):
        super().__init__(layers=nn.ModuleList([nn.ModuleList([branch(), branch()]) for _ in range(count)]))

    def add(self, x):
        for attention, perceptron in self.layers:
            x = attention(x) + x
            x = x + perceptron(x)
        return x

    @property
    def branches(self) -> list[nn.Module]:
        return [branch for pair in self.layers for branch in pair]


def kept(model: Pairs, count: int) -> torch.Tensor:
    """What the model gives with its first branches alone."""
    x = model.stem(images()).relu()
    for item in model.branches[:count]:
        x = x + item(x)
    return model.head(x)


PAIRS = tuple(f"layers.{pair}.{item}" for pair in range(2) for item in range(2))


def test_branches_in_lists_of_lists_are_one_depth_and_drop_from_the_end():
    model = perturbed(Pairs())
    graph = trace(model, images())  # its self check runs both executions
    assert graph.depths == (Depth("layers", PAIRS, is_added=True),)
    assert Graph.from_json(graph.to_json()) == graph
    for count in (1, 2, 3, 4):
        architecture = Architecture(graph.full.widths, {"layers": count})
        small = cut(model, graph, architecture)
        torch.testing.assert_close(small(images()), kept(model, count))
        assert sum(parameter.numel() for parameter in small.parameters()) == graph.params(architecture)


def test_what_makes_the_stream_leads_where_it_has_layers():
    class ResNet9(Net):
        def add(self, x):
            x = self.second(x)
            x = self.one(x) + x
            x = self.third(x)
            return self.two(x) + x

    model = ResNet9(second=nets.conv_bn(8, 8), one=branch(), third=nets.conv_bn(8, 8), two=branch())
    graph = trace(perturbed(model), images())
    assert graph.depths == (
        Depth("one", ("second", "one"), is_added=True),
        Depth("two", ("third", "two"), is_added=True),
    )  # fmt: skip


@pytest.mark.parametrize("execution", ["compact", "dense"])
def test_a_mixture_of_depths_is_that_of_the_streams(execution):
    model = perturbed(Pairs()).double()
    graph = trace(model.float(), images())
    space = SearchSpace({name: (size,) for name, size in graph.full.widths.items()}, {"layers": (1, 3, 4)})
    supernet = Supernet(model, graph, space, execution=execution, depth_samples="all").eval()
    seen: list[torch.Tensor] = []
    supernet.model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    supernet.draw(5.0, torch.Generator().manual_seed(0))
    supernet(images())
    state = supernet._depths["layers"]
    weights = state.weights.values() if execution == "compact" else state.vector[[0, 2, 3]]
    mixed = seen.pop()
    wanted = torch.zeros_like(mixed)
    for weight, count in zip(weights, (1, 3, 4), strict=True):
        with supernet.fixed(Architecture(graph.full.widths, {"layers": count})):
            supernet(images())
        wanted = wanted + weight * seen.pop()
    torch.testing.assert_close(mixed, wanted)
    (gradient,) = torch.autograd.grad(mixed.square().mean(), supernet.logits)
    assert gradient[-1, :3].abs().min() > 0


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def test_branches_beyond_the_deepest_that_is_drawn_do_not_run():
    branches, state = [Counted() for _ in range(4)], DepthState((1, 2, 3, 4), 4)
    opened = [branches[0], *(OpenBranch(item, state, place) for place, item in enumerate(branches[1:], 1))]

    def run() -> float:
        x = torch.ones(())
        for item in opened:
            x = x + item(x)
        return float(x)

    assert run() == 16
    state.draw([0, 2], torch.tensor([0.25, 0.75]))
    assert run() == pytest.approx(0.25 * 2 + 0.75 * 8)
    assert [item.calls for item in branches] == [2, 2, 2, 1]
    state.draw_dense(torch.tensor([3, 0]), torch.tensor([0.5, 0.5]))
    assert run() == pytest.approx(0.5 * 2 + 0.5 * 16)


def test_branches_may_return_tuples_and_be_called_by_name():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = branch()

        def forward(self, tokens, scale=None):
            return self.inner(tokens), scale

    class InTuples(Net):
        def add(self, x):
            for item in self.items:
                x = x + item(scale=(1, 2), tokens=x)[0]
            return x

    model = perturbed(InTuples(items=nn.ModuleList([Pair(), Pair(), Pair()])))
    graph = trace(model, images())
    assert graph.depths == (Depth("items", ("items.0", "items.1", "items.2"), returns=2, is_added=True),)
    small = cut(model, graph, replace(graph.full, depths={"items": 1}))
    assert not any(True for _ in small.get_submodule("items.2").parameters())


def test_branches_may_return_lists():
    class InList(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = branch()

        def forward(self, x):
            return [self.inner(x)]

    class InLists(Net):
        def add(self, x):
            for item in self.items:
                x = x + item(x)[0]
            return x

    model = perturbed(InLists(items=nn.ModuleList([InList(), InList(), InList()])))
    graph = trace(model, images())
    assert graph.depths == (Depth("items", ("items.0", "items.1", "items.2"), returns=1, is_added=True),)
    supernet = Supernet(model, graph, SearchSpace.of(graph))
    supernet.draw(5.0, torch.Generator().manual_seed(0))
    assert supernet(images()).isfinite().all()


class Scaled(Net):
    def add(self, x):
        for item in self.items:
            x = x + 0.5 * item(x)
        return x


class ThenRelu(Net):
    def add(self, x):
        for item in self.items:
            x = x + item(x).relu()
        return x


class Weighted(Net):
    def add(self, x):
        for item in self.items:
            x = torch.add(x, item(x), alpha=2)
        return x


class ReadTwice(Net):
    def add(self, x):
        means = 0.0
        for item in self.items:
            found = item(x)
            x, means = x + found, means + found.mean((2, 3), keepdim=True)
        return x * means.sigmoid()


class Other(Net):
    def add(self, x):
        before = x
        for item in self.items:
            before, x = x, item(x) + before
        return x


@pytest.mark.parametrize("net", [Scaled, ThenRelu, Weighted, ReadTwice, Other])
def test_only_what_is_added_as_it_is_to_what_was_read_is_a_branch(net):
    assert trace(perturbed(net(items=nn.ModuleList([branch() for _ in range(3)]))), images()).depths == ()


def test_sums_that_others_read_end_a_run():
    class Tapped(Net):
        def add(self, x):
            first = x + self.one(x)
            second = first + self.two(first)
            third = second + self.three(second)
            return third + 0.5 * first

    model = Tapped(stream=nets.conv_bn(8, 8), one=branch(), two=branch(), three=branch())
    graph = trace(perturbed(model), images())
    assert [depth.blocks for depth in graph.depths] == [("two", "three")]


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_a_sum_of_another_kind_before_a_run_leaves_it_its_first_branch(alpha):
    class After(Net):
        def add(self, x):
            x = x + self.pooled(x) if alpha is None else x.add(self.gate(x), alpha=alpha)
            for item in self.items:
                x = x + item(x)
            return x

    gate, pooled = nn.Conv2d(8, 8, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
    model = perturbed(After(gate=gate, pooled=pooled, items=nn.ModuleList([branch() for _ in range(3)])))
    assert [depth.blocks for depth in trace(model, images()).depths] == [("items.0", "items.1", "items.2")]


def test_sums_in_place_of_what_a_branch_gives():
    class InPlace(Net):
        def add(self, x):
            for item in self.items:
                found = item(x)
                found += x
                x = found
            return x

    model = perturbed(InPlace(items=nn.ModuleList([branch() for _ in range(3)])))
    graph = trace(model, images())
    assert [depth.blocks for depth in graph.depths] == [("items.0", "items.1", "items.2")]
    supernet = Supernet(model, graph, SearchSpace.of(graph))
    supernet.draw(5.0, torch.Generator().manual_seed(0))
    supernet(images()).square().mean().backward()
    assert supernet.logits.grad is not None


def test_free_residuals_leave_branches_tied_and_say_so():
    graph = trace(perturbed(Pairs()), images(), residuals="free")
    assert graph.depths == (Depth("layers", PAIRS, is_added=True),)
    assert [item.axis for item in graph.frozen if "keep one width" in item.reason] == list(PAIRS[1:])


@pytest.mark.parametrize("count", [1, 2])
def test_a_depth_of_branches_that_are_layers_has_a_name_of_its_own(count):
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
            for place in range(count):
                self.add_module(f"attention{place}", nn.MultiheadAttention(16, 4, batch_first=True))

        def forward(self, x):
            x = self.stem(x)
            for attention in [*self.children()][2:]:
                x = x + attention(x, x, x)[0]
            return self.head(x)

    inputs = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    graph = trace(Attentive(), inputs)
    assert [(depth.name, len(depth.blocks)) for depth in graph.depths] == [("attention0+", count + 1)]
    supernet = Supernet(Attentive().eval(), graph, SearchSpace.of(graph))
    supernet.draw(5.0, torch.Generator().manual_seed(0))
    assert supernet(inputs).shape == (2, 6, 5)


def test_runs_in_one_list_are_named_by_their_first_branches():
    class Twice(Net):
        def add(self, x):
            for item in self.items[:3]:
                x = x + item(x)
            x = self.between(x)
            for item in self.items[3:]:
                x = x + item(x)
            return x

    model = perturbed(Twice(between=nets.conv_bn(8, 8), items=nn.ModuleList([branch() for _ in range(5)])))
    assert {depth.name: depth.blocks for depth in trace(model, images()).depths} == {
        "items.1": ("items.0", "items.1", "items.2"),
        "items.3": ("between", "items.3", "items.4"),
    }


def test_what_is_inside_a_branch_may_be_asked_from_outside():
    class Asked(Net):
        def add(self, x):
            for item in self.items:
                x = x + item(x)
            return x * self.items[0][0][1].momentum

    model = perturbed(Asked(items=nn.ModuleList([branch() for _ in range(3)])))
    assert [depth.blocks for depth in trace(model, images()).depths] == [("items.0", "items.1", "items.2")]


@pytest.mark.parametrize("execution", ["compact", "dense"])
@pytest.mark.parametrize("kind", ["blocks", "branches"])
def test_a_stream_that_is_changed_in_place_keeps_the_gradients_of_the_logits(kind, execution):
    class NotKept(Net):
        def forward(self, x):
            return self.head(self.add(self.stem(x)))

    class Scales(nn.Module):  # keeps nothing that it reads
        def __init__(self):
            super().__init__()
            self.conv = nets.conv_bn(8, 8)

        def forward(self, x):
            return self.conv(x * 1.5).relu()

    class AddsInPlace(NotKept):
        def add(self, x):
            for item in self.items:
                x = x.add_(item(x))
            return x

    class ReluFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nets.conv_bn(8, 8), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.relu(x)
            return x + self.conv(x)

    class Rows(NotKept):
        def add(self, x):
            for item in self.items:
                x = item(x)
            return x

    items = nn.ModuleList([Scales() if kind == "branches" else ReluFirst() for _ in range(3)])
    model = perturbed((AddsInPlace if kind == "branches" else Rows)(items=items))
    graph = trace(model, images())
    (depth,) = graph.depths
    supernet = Supernet(model, graph, SearchSpace.of(graph), execution=execution, depth_samples="all")
    supernet.draw(5.0, torch.Generator().manual_seed(0))
    supernet(images()).square().mean().backward()
    assert supernet.logits.grad[-1, : len(depth.blocks)].abs().min() > 0
