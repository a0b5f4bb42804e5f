"""Nets drawn at random from the pieces of vision models; what holds for every net must hold for them."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from nets import counted_macs, images, perturbed
from token_nets import Attention, LayerNorm2d
from torch import Tensor, nn

from tas.nn.supernet import Supernet
from tas.nn.surgery import mask, reorder
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace

CHANNELS = 8  # every piece reads and gives as many, so that any sequence fits


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def shuffled(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def gate(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return one * other.sigmoid()


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Concatenated(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left, self.right, self.merge = left, right, conv(2 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([self.left(x), self.right(x)], 1))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Attended(nn.Module):
    def __init__(self, heads: int, flat: bool):
        super().__init__()
        self.attention = Attention(CHANNELS, heads, flat=flat)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens).transpose(1, 2).reshape(x.shape)


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def conv(inputs: int = CHANNELS, outputs: int = CHANNELS, **options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.BatchNorm2d(outputs), nn.ReLU())


PIECES: dict[str, Callable[[], nn.Module]] = {
    "convolution": conv,
    "convolution without norm": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    "depthwise": lambda: conv(groups=CHANNELS),
    "grouped": lambda: conv(groups=2),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1),
    "shuffle": lambda: Function(shuffled),
    "gate": lambda: nn.Sequential(conv(CHANNELS, 2 * CHANNELS), Function(gate)),
    "layer norm": lambda: LayerNorm2d(CHANNELS),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "one group": lambda: nn.GroupNorm(1, CHANNELS),
    "slope": lambda: nn.PReLU(CHANNELS),
    "scale": Scaled,
    "squeeze": Squeezed,
    "attention": lambda: Attended(2, flat=False),
    "flat attention": lambda: Attended(4, flat=True),
    "roll": lambda: Function(lambda x: x.roll(1, 2)),
    "pad": lambda: Function(lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)),
}
plain = st.sampled_from(sorted(PIECES)).map(lambda name: (name,))
nested = st.recursive(
    plain,
    lambda inner: (
        st.tuples(st.just("residual"), inner)
        | st.tuples(st.just("concatenated"), inner, inner)
        | st.tuples(st.just("sequence"), inner, inner)
    ),
    max_leaves=4,
)


def build(piece: tuple) -> nn.Module:
    name, *parts = piece
    inner = [build(part) for part in parts]
    wrap = {"residual": Residual, "concatenated": Concatenated, "sequence": nn.Sequential}
    return wrap[name](*inner) if parts else PIECES[name]()


def relative(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max() / one.detach().abs().max())


# no shrinking: every example is traced, which takes a second
@settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(st.lists(nested, min_size=1, max_size=3), st.integers(0, 1000))
def test_whatever_is_found_in_a_random_net_can_be_cut_counted_ordered_and_searched(pieces, seed):
    parts = [build(piece) for piece in pieces]
    net = nn.Sequential(conv(3), *parts, conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5))
    model = perturbed(net, seed, torch.float64)
    inputs = images(dtype=torch.float64)
    graph = trace(model, inputs)
    space, draw = SearchSpace.of(graph), torch.Generator().manual_seed(seed)
    assert graph.macs() == counted_macs(model, inputs)
    for architecture in (space.smallest, space.sample(draw), graph.full):
        small = derive(model, graph, architecture)
        assert relative(mask(model, graph, architecture)(inputs), small(inputs)) < 1e-9
        assert graph.macs(architecture) == counted_macs(small, inputs)
        assert graph.params(architecture) == sum(parameter.numel() for parameter in small.parameters())
    assert relative(model(inputs), small(inputs)) < 1e-9  # the last one is the full one
    random = np.random.default_rng(seed)
    ordered = reorder(model, graph, {width.name: random.permutation(width.size) for width in graph.widths})
    assert relative(model(inputs), ordered(inputs)) < 1e-9
    outputs = []
    for execution in ("compact", "dense"):
        supernet = Supernet(model, graph, space, execution=execution)
        supernet.draw(1.0, torch.Generator().manual_seed(seed))
        outputs.append(supernet(inputs))
    assert relative(*outputs) < 1e-9
