"""Residual nets whose identities a projection can replace, small enough for tests of free residuals."""

from functools import cache

from nets import conv_bn, head, images, perturbed
from torch import Tensor, nn

from tas.graph import Graph
from tas.pipeline.trace import trace


class Block(nn.Module):
    """A block whose shortcut is a convolution, or nothing, as an `nn.Identity` or as None."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, named: bool = False):
        super().__init__()
        self.inner, self.outer = conv_bn(inputs, 5), conv_bn(5, outputs)
        self.pool = nn.AvgPool2d(stride)
        changes = inputs != outputs or stride > 1
        projection = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False))
        self.shortcut = projection if changes else nn.Identity() if named else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.outer(self.pool(self.inner(x).relu()))
        return (residual + (x if self.shortcut is None else self.shortcut(x))).relu()


class TwoStages(nn.Module):
    """Every convolution can have a width of its own: 1 + 2·5; depths of 3 and 2 blocks; 4 shortcuts can differ."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.first = nn.Sequential(*[Block(6, 6, named=True) for _ in range(3)])
        self.second = nn.Sequential(Block(6, 8, stride=2), Block(8, 8))
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x).relu())))


class Twins(nn.Module):
    """Both outputs of a stage are results: what is read behind it must keep its width."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage = conv_bn(3, 6), nn.Sequential(*[Block(6, 6) for _ in range(3)])
        self.head = head(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stage(self.stem(x).relu())
        return self.head(features), features


@cache
def traced() -> tuple[nn.Module, Graph]:
    """The net with random weights, and its graph with free residuals."""
    model = perturbed(TwoStages())
    return model, trace(model, images(), residuals="free")
