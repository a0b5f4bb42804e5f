"""Toy networks of about ten lines each; every one shows one thing a trace must get right."""

import copy
from functools import cache

import torch
import torch.nn.functional as F
from token_nets import TOKEN_NETS, Decoder, OneHeadReduced, Pyramid
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from tas.graph import Graph
from tas.nn.outputs import no_fast_path
from tas.pipeline.trace import trace


def perturbed(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy in evaluation mode with random weights, norms and statistics: every channel and block has an effect."""
    draw = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, spread in (
                    (module.weight, 0.5, 1.0),
                    (module.bias, -0.5, 1.0),
                    (module.running_mean, -0.5, 1.0),
                    (module.running_var, 0.5, 1.0),
                ):
                    if tensor is not None:
                        tensor.copy_(low + spread * torch.rand(tensor.shape, generator=draw))
            elif isinstance(module, nn.Conv2d | nn.Linear):
                scale = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=draw) * scale)
                if module.bias is not None:
                    module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=draw))
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model.to(dtype).eval()  # again: a module may keep what it computes from its weights


def images(batch: int = 4, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def counted_macs(model: nn.Module, inputs: Tensor) -> float:
    """Torch's own count, per sample, of plain operations; the kernel of an LSTM is none, its steps on meta are."""
    if any(isinstance(module, nn.LSTM) for module in model.modules()):
        model, inputs = copy.deepcopy(model).to("meta"), inputs.to("meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), no_fast_path(), sdpa_kernel(SDPBackend.MATH), counter:
        model(inputs)
    return counter.get_total_flops() / 2 / len(inputs)


def conv_bn(inputs: int, outputs: int, **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs, **options))


def head(features: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5))


class Plain(nn.Module):
    """Two convolutions with norms and a classifier: widths `first.0` (8) and `second.0` (12)."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8, **options), conv_bn(8, 12, **options), head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


class WithoutNorm(nn.Module):
    """Convolutions with biases and no norm: the layers mix their candidates themselves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3)
        self.third, self.head = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu().mean((2, 3))
        return self.head(self.third(x).relu())


class Block(nn.Module):
    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.inner, self.outer = conv_bn(channels, inner), conv_bn(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.outer(self.inner(x).relu())).relu()


class Residual(nn.Module):
    """A stem and three residual blocks: a tied width `stem.0`, three inner widths, a depth `stage` of 3."""

    def __init__(self, blocks: int = 3):
        super().__init__()
        self.stem, self.stage = conv_bn(3, 8), nn.Sequential(*[Block(8, 6) for _ in range(blocks)])
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)))


class Numbered(Residual):
    """Blocks that say what they read, as those of YOLOs: also one that was dropped is asked."""

    def __init__(self):
        super().__init__()
        for block in self.stage:
            block.reads = -1

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x).relu()]
        for block in self.stage:
            found.append(block(found[block.reads]))
        return self.head(found[-1])


class Listed(nn.Module):
    """Registers its layers by number and goes through a list that it keeps beside, as MaskFormer's decoder does."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)]
        self.named = {"head": (head(6), [])}
        for place, layer in enumerate(self.layers):
            self.add_module(str(place), layer)
        self.classifier = self.named["head"][0]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.named["head"][0](x)


class Tapped(nn.Module):
    """Blocks whose outputs are all used again: no block can be dropped without changing what the taps mean."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage = conv_bn(3, 8), nn.ModuleList(Block(8, 6) for _ in range(4))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, taps = self.stem(x), []
        for block in self.stage:
            x = block(x)
            taps.append(x.mean((2, 3)))
        return self.head(torch.cat(taps, 1))


def sequential_residual() -> nn.Sequential:
    """The lead of the run is a layer itself: a width and a depth must not share a name."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(8, 6), Block(8, 6), head(8))


class Concat(nn.Module):
    """Two branches side by side, read by one convolution behind one norm."""

    def __init__(self):
        super().__init__()
        self.left, self.right = conv_bn(3, 8), nn.Conv2d(3, 6, 1)
        self.norm, self.last, self.head = nn.BatchNorm2d(14), conv_bn(14, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x).relu(), self.right(x)], 1)
        return self.head(self.last(self.norm(both).relu()).relu())


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.squeeze, self.excite = conv_bn(3, 12), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x * gate)


class Depthwise(nn.Module):
    """Expand, filter every channel on its own (two outputs each), project."""

    def __init__(self, multiplier: int = 1):
        super().__init__()
        self.expand, wide = conv_bn(3, 8), 8 * multiplier
        self.filter, self.norm = nn.Conv2d(8, wide, 3, padding=1, groups=8), nn.BatchNorm2d(wide)
        self.project, self.head = conv_bn(wide, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(self.norm(self.filter(self.expand(x).relu())).relu()))


class FlattenToLinear(nn.Module):
    """Every channel fills 16 features of the linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.last = conv_bn(3, 6), nn.Linear(6 * 16, 10), nn.Linear(10, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x).relu(), 2).flatten(1)
        return self.last(self.dropout(self.hidden(x).relu()))


class PaddedShortcut(nn.Module):
    """Option A of the ResNet paper: the narrow stream is padded with empty channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.head = conv_bn(3, 6), conv_bn(6, 12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.wide(x) + F.pad(x, (0, 0, 0, 0, 3, 3))).relu())


class Chunked(nn.Module):
    """Half of the channels goes one way, half the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.last, self.head = conv_bn(3, 8), conv_bn(4, 4), conv_bn(8, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.stem(x).chunk(2, 1)
        return self.head(self.last(torch.cat([one, self.branch(other)], 1)))


class Shuffled(nn.Module):
    """A channel shuffle in two groups."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.head = conv_bn(3, 8), conv_bn(8, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.last(x))


class HardCoded(nn.Module):
    """The forward names the number of `conv`'s channels; those of `free` are not named."""

    def __init__(self):
        super().__init__()
        self.free, self.conv, self.last = conv_bn(3, 8), conv_bn(8, 6), nn.Linear(6 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.free(x).relu()).view(-1, 6 * 64))


class Shared(nn.Module):
    """One convolution and norm called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = conv_bn(3, 8), conv_bn(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.stem(x)).relu()))


class Sliced(nn.Module):
    """Slices of containers, of whose modules one is shared: only then the export names modules behind the slice."""

    def __init__(self):
        super().__init__()
        act = nn.Sequential(nn.ReLU())
        layers = [conv_bn(3, 8), act, Block(8, 6), Block(8, 4), conv_bn(8, 12), act]
        self.layers, self.list = nn.Sequential(*layers), nn.ModuleList([conv_bn(12, 6), act, conv_bn(6, 10)])
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-2]:
            x = layer(x)
        for layer in (*self.layers[-2:], *self.list[:1]):
            x = layer(x)
        for layer in self.list[1:]:
            x = layer(x)
        return self.head(x)


class SharedInBlocks(nn.Module):
    """Blocks that share their convolution: dropping a block drops a call, no parameters."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), head(8)
        self.stage = nn.Sequential(*[Block(8, 6) for _ in range(3)])
        self.stage[1].inner = self.stage[2].inner

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)))


class TwoNames(nn.Module):
    """Blocks that are called as parts of a whole beside it, and a layer with its norm that is called by two names."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage, self.head = conv_bn(3, 8), nn.Sequential(*[Block(8, 6) for _ in range(3)]), head(10)
        self.parts = nn.ModuleList([self.stage[:2], self.stage[2:]])
        self.one, self.two = conv_bn(8, 10), conv_bn(10, 10)
        self.again = self.two

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return self.head(self.again(self.two(self.one(x).relu()).relu()))


class LendsToStages(nn.Module):
    """Blocks that lend layers to a later block of their stage and to another stage: the lender has to stay."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), head(8)
        self.one, self.two = (nn.Sequential(*[Block(8, 6) for _ in range(4)]) for _ in range(2))
        self.one[3].inner = self.one[2].inner
        self.two[1].inner[0] = self.two[2].inner[0] = self.one[1].inner[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x))))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = conv_bn(3, 8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight, self.head = self.one.weight, head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x)).relu()))


class UnknownOperation(nn.Module):
    """A running maximum has no rule."""

    def __init__(self):
        super().__init__()
        self.conv, self.last, self.head = conv_bn(3, 8), conv_bn(8, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.conv(x).cummax(1).values))


class Statistics(nn.Module):
    """Per channel: deviation, running sums, the largest values, a soft maximum, the median."""

    def __init__(self):
        super().__init__()
        self.first, self.second = conv_bn(3, 8), conv_bn(8, 6)
        self.head = nn.Linear(6 * 5, 7)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.second(self.first(x).cumsum(2) / 8).flatten(2)
        largest, _ = pixels.topk(3)
        spread, mean = torch.std_mean(pixels, -1)
        middle = pixels.sort().values[..., 20:40].mean(-1)
        found = [spread - mean, largest.mean(-1), pixels.logsumexp(-1), middle, pixels.median(-1).values]
        return self.head(torch.cat(found, 1))


class ListedParameters(nn.Module):
    """Scales of residual branches in a list, and shifts in a dictionary, that the forward reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = conv_bn(3, 8), nn.ModuleList([conv_bn(8, 8), conv_bn(8, 8)]), head(8)
        self.scales = nn.ParameterList([torch.rand(8, 1, 1), torch.rand(8, 1, 1)])
        self.shifts = nn.ParameterDict({"first": torch.rand(1, 8, 1, 1), "last": torch.rand(8, 1, 1)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.shifts["first"]
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * block(x)
        return self.head(x * self.scales[0] + sum(shift for name, shift in self.shifts.items() if name == "last"))


class Resampled(nn.Module):
    """Channels read at other positions, and masked by their own values."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.head = conv_bn(3, 8), conv_bn(8, 6), head(6)
        turned = torch.tensor([[[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1]]])
        self.register_buffer("grid", F.affine_grid(turned, [1, 1, 8, 8], align_corners=False))

    def forward(self, x: Tensor) -> Tensor:
        x = F.grid_sample(self.first(x), self.grid.expand(len(x), -1, -1, -1), align_corners=False)
        return self.head(self.last(x.masked_fill(x > 1, 0.5)))


class SpatialAttention(nn.Module):
    """One channel of `gate` acts on all channels of `conv`."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = conv_bn(3, 8), nn.Conv2d(8, 1, 3, padding=1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x * self.gate(x).sigmoid())


class InputAdded(nn.Module):
    """The network's input is added to what a convolution makes."""

    def __init__(self):
        super().__init__()
        self.first, self.back, self.last, self.head = conv_bn(3, 8), conv_bn(8, 3), conv_bn(3, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(x + self.back(self.first(x).relu())))


class Normed(nn.Module):
    """A layer norm over features."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = conv_bn(3, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x).mean((2, 3))))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self):
        super().__init__()
        self.first, self.grouped, self.last = conv_bn(3, 8), nn.Conv2d(8, 8, 3, groups=2), conv_bn(8, 10)
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(self.first(x).relu()).relu()))


class ReadsWeight(nn.Module):
    """The forward reads an attribute of a layer, which a replaced layer does not have."""

    def __init__(self):
        super().__init__()
        self.free, self.conv, self.head = conv_bn(3, 6), nn.Conv2d(6, 8, 3), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.free(x)) * self.conv.weight.square().mean())


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class SamePadded(nn.Conv2d):
    """Pads as the input's size demands, as TensorFlow does; its forward may run on a cut weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class NormWithActivation(nn.BatchNorm2d):
    """Norm, dropout and activation in one module, as timm has it."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class OwnForwards(nn.Module):
    """Layers of subclasses with forwards of their own that can be cut all the same."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = SamePadded(3, 8, 3, stride=2), NormWithActivation(8)
        self.last, self.head = conv_bn(8, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(self.conv(x))))


class Subclassed(nn.Module):
    """A convolution with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.free, self.own, self.last, self.head = conv_bn(3, 6), OwnConv(6, 8, 3), conv_bn(8, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.own(self.free(x)).relu()))


class AuxiliaryHead(nn.Module):
    """A second classifier that only runs in training."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head, self.auxiliary = conv_bn(3, 8), conv_bn(8, 10), head(10), head(8)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        outputs = self.head(self.second(x).relu())
        return (outputs, self.auxiliary(x)) if self.training else outputs


class HiddenRegion(nn.Module):
    """A part of the forward runs without autocast, which export puts into a region of its own."""

    def __init__(self):
        super().__init__()
        self.before, self.inside, self.after, self.head = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        with torch.autocast("cpu", enabled=False):
            x = self.inside(x).relu()
        return self.head(self.after(x))


class Conditional(nn.Module):
    """CondConv in blocks that can be left out: a kernel mixed anew for every image, which no layer's weight is."""

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, width * width * 9) / width)
            self.route, self.norm = nn.Linear(width, 3), nn.BatchNorm2d(width)

        def forward(self, x: Tensor) -> Tensor:
            (count, width), size = x.shape[:2], x.shape[2:]
            kernels = (self.route(x.mean((2, 3))).sigmoid() @ self.experts).view(count * width, width, 3, 3)
            mixed = F.conv2d(x.reshape(1, count * width, *size), kernels, padding=1, groups=count)
            return x + self.norm(mixed.view(x.shape)).relu()

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = conv_bn(3, 8), nn.Sequential(*(self.Block(8) for _ in range(3))), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()))


class Rolled(nn.Module):
    """Channels in another order, twice, one copy upside down."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.head = conv_bn(3, 8), conv_bn(16, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.last(torch.cat([x, x.flip(1)], 1)))


class PixelShuffled(nn.Module):
    """Four channels become one with four times the pixels, over which a module averages at once."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.head = conv_bn(3, 16), conv_bn(4, 10), head(10)
        self.norm = ChannelsFirst(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(F.pixel_shuffle(self.stem(x), 2))))


class Transposed(nn.Module):
    """A transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = conv_bn(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.last, self.head = conv_bn(6, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.up(self.stem(x)).relu()))


class TwoInputs(nn.Module):
    """Two tensors in; a mapping, a number and nothing out."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = conv_bn(3, 8), conv_bn(3, 8), head(8)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        return {"logits": self.head(self.left(x) + self.right(y)), "none": None, "count": 3}


class FixedBatch(nn.Module):
    """The forward names its batch size."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = conv_bn(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).mean((2, 3)).view(4, -1))


class Parametrised(nn.Module):
    """Convolutions with spectral and weight norm."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.head = conv_bn(3, 8), conv_bn(6, 10), head(10)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.weighted(self.spectral(self.first(x)))))


class Swish(torch.autograd.Function):
    """An activation with a backward of its own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid()))


class Various(nn.Module):
    """A buffer per channel, a custom autograd function, stochastic depth."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.head = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 8), head(8)
        self.register_buffer("mean", torch.linspace(-1, 1, 8).view(1, 8, 1, 1))
        self.drop = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) - self.mean
        return self.head(x + self.drop(self.third(Swish.apply(self.second(x)))))


class FunctionalNorms(nn.Module):
    """Norms that are no modules: over all of an image, and to unit length over channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.head = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 10), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(self.first(x), (8, 8, 8))
        return self.head(self.third(F.normalize(self.second(x), dim=1)))


class Fused(nn.Module):
    """What YOLOs are built of: half of the channels through residual blocks, and every stage of it read again."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.hidden, self.first, self.last = hidden, conv_bn(inputs, 2 * hidden), conv_bn(4 * hidden, outputs)
        self.blocks = nn.ModuleList(Block(hidden, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.first(x).split((self.hidden, self.hidden), 1))
        for block in self.blocks:
            found.append(block(found[-1]))
        return self.last(torch.cat(found, 1))


class Detects(nn.Module):
    """A detector in small: pooled thrice, upsampled beside what it came from, boxes and classes at two scales."""

    def __init__(self):
        super().__init__()
        self.fused, self.deep, self.pooled = Fused(3, 4, 8), conv_bn(8, 12), conv_bn(48, 10)
        self.joined = Fused(18, 4, 6)
        self.boxes = nn.ModuleList(nn.Sequential(conv_bn(size, 6), nn.Conv2d(6, 8, 1)) for size in (6, 10))
        self.classes = nn.ModuleList(nn.Sequential(conv_bn(size, 4), nn.Conv2d(4, 3, 1)) for size in (6, 10))
        self.anchors: Tensor | None = None  # made when the size of the images is known, and kept

    def forward(self, x: Tensor) -> Tensor:
        x = self.fused(x)
        pools = [torch.relu(self.deep(F.max_pool2d(x, 2)))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 3, 1, 1))
        deep = self.pooled(torch.cat(pools, 1))
        scales = [self.joined(torch.cat([F.interpolate(deep, scale_factor=2.0), x], 1)), deep]
        boxes = torch.cat([head(scale).view(len(x), 8, -1) for head, scale in zip(self.boxes, scales, strict=True)], 2)
        scores = [head(scale).view(len(x), 3, -1) for head, scale in zip(self.classes, scales, strict=True)]
        left, right = (boxes.view(len(x), 2, 4, -1).softmax(2) * torch.arange(4.0).view(1, 1, 4, 1)).sum(2).chunk(2, 1)
        if self.anchors is None or len(self.anchors) != right.shape[2]:
            self.anchors = torch.arange(right.shape[2]).type_as(scales[0]) + 0.5
        return torch.cat([right - left + self.anchors, right + left, torch.cat(scores, 2).sigmoid()], 1)


class ChannelsFirst(nn.Module):
    """ConvNeXt's layer norm: an average over channels that the module takes by itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        normal = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * normal + self.bias[:, None, None]


class Response(nn.Module):
    """ConvNeXt V2's global response norm, channels last."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(1, 2), keepdim=True)
        return self.gamma * x * (size / (size.mean(-1, keepdim=True) + 1e-6)) + x


class Unit(nn.Module):
    """Vectors of length one; nothing stored."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class Spot(nn.Module):
    """A map of where to look, from averages over channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.stack([x.mean(1), x.max(1)[0]], 1)).sigmoid()


class OwnNorms(nn.Module):
    """Norms without a rule, norms without weights, and spatial attention."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Conv2d(10, 6, 3)
        self.one, self.two, self.three = ChannelsFirst(8), Response(10), nn.LayerNorm(6, elementwise_affine=False)
        self.spot, self.unit, self.head = Spot(), Unit(), head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.one(self.first(x))))
        x = self.third(F.gelu(self.two(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        x = self.three(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.unit(x * self.spot(x) + 0.1))


class NoNorms(nn.Module):
    """Averages over channels that are no norms: of what a layer inside reads as well, and of what one inside makes."""

    class Reads(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.layer = nn.Conv2d(channels, channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * x.mean(1, keepdim=True)

    class Makes(Reads):
        def forward(self, x: Tensor) -> Tensor:
            made = self.layer(x)
            return x * made.mean(1, keepdim=True)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(8, 12), head(12)
        self.reads, self.makes = self.Reads(8), self.Makes(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.makes(self.second(self.reads(self.first(x)))))


class Remembers(nn.Module):
    """Keeps what it has computed from its weights, in evaluation mode, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.scale, self.known = nn.Parameter(torch.rand(8) + 0.5), {}

    def train(self, mode: bool = True):
        super().train(mode)
        if mode:
            self.known = {}
        return self

    def forward(self, x):
        if self.training:
            return x * self.scale[:, None, None].exp()
        if "scale" not in self.known:
            self.known["scale"] = self.scale[:, None, None].exp()
        return x * self.known["scale"]


class Nested(nn.Module):
    """Every layer is called by another path than its first, as in nnU-Net."""

    class Around(nn.Module):
        def __init__(self, down: nn.Module, inside: nn.Module, up: nn.Module):
            super().__init__()
            self.down, self.inside, self.up = down, inside, up

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(x)
            return self.up(torch.cat([x, self.inside(x)], 1))

    def __init__(self):
        super().__init__()
        self.downs = nn.ModuleList([conv_bn(3, 8), conv_bn(8, 12)])
        self.ups = nn.ModuleList([conv_bn(16, 6), conv_bn(22, 8)])
        self.bottom, self.head = conv_bn(12, 10), head(6)
        self.whole = self.Around(self.downs[0], self.Around(self.downs[1], self.bottom, self.ups[1]), self.ups[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.whole(x))


class BestClass(nn.Module):
    """Gives how sure it is of the best class alone: all classes must stay."""

    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.max(1)[0]

    def __init__(self):
        super().__init__()
        self.first, self.classes, self.best = conv_bn(3, 8), nn.Conv2d(8, 5, 1), self.Best()

    def forward(self, x: Tensor) -> Tensor:
        return self.best(self.classes(self.first(x)))


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight, as of BiT; with a gain for every channel, as of an NFNet."""

    def __init__(self, *sizes: int, **options):
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, self.gain.view(-1), training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedNet(nn.Module):
    """Such convolutions, plain, grouped and depthwise, before a batch norm, a group norm and none."""

    def __init__(self, kernel: int = 3):
        super().__init__()
        options = {"kernel_size": kernel, "padding": kernel // 2}
        self.first, self.norm = Standardised(3, 8, **options, bias=False), nn.BatchNorm2d(8)
        self.second, self.group_norm = Standardised(8, 6, **options), nn.GroupNorm(1, 6)
        self.each, self.third = Standardised(6, 6, 3, padding=1, groups=6), Standardised(6, 8, **options)
        self.grouped, self.head = Standardised(8, 10, **options, groups=2), head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group_norm(self.second(self.norm(self.first(x)).relu())).relu()
        return self.head(self.grouped(F.gelu(self.third(self.each(x)))))


class Masked(nn.Conv2d):
    """A convolution of which some weights are held at zero, by a buffer or a parameter that does not learn."""

    def __init__(self, *sizes: int, learns: bool, **options):
        super().__init__(*sizes, **options)
        mask = (torch.rand(self.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.7).float()
        if learns:
            self.mask = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaskedNet(nn.Module):
    """Such convolutions, plain, grouped and depthwise, before a norm and none."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = Masked(3, 8, 3, padding=1, learns=False), nn.BatchNorm2d(8)
        self.second, self.each = Masked(8, 6, 1, learns=True), Masked(6, 6, 3, padding=1, groups=6, learns=False)
        self.third, self.grouped = Masked(6, 8, 3, learns=False), Masked(8, 10, 3, groups=2, learns=True)
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.each(self.second(self.norm(self.first(x)).relu())))
        return self.head(self.grouped(F.gelu(self.third(x))))


class Recurrent(nn.Module):
    """Columns of an image read one after the other, as in text recognition: both directions, two layers; then a GRU."""

    def __init__(self):
        super().__init__()
        self.conv, self.tall = conv_bn(3, 8), nn.Conv2d(8, 6, (8, 1))
        self.lines = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.mixed, self.again, self.head = nn.Linear(10, 7), nn.GRU(7, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lines(self.tall(F.relu(self.conv(x))).squeeze(2).transpose(1, 2))
        x, _ = self.again(self.mixed(x).relu().transpose(0, 1))
        return self.head(x[-1])


class Checked(nn.Module):
    """A step that first checks what it is given, with a number that no layer of it reads."""

    class Step(nn.Module):
        def __init__(self, channels: int, out: int):
            super().__init__()
            self.channels, self.out, self.inner = channels, out, conv_bn(channels, out)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == self.channels
            if x.shape[2] < 2 or x.shape[1] != self.channels:
                raise ValueError("no such image")
            return self.inner(x).relu()

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.head = conv_bn(3, 8), self.Step(8, 8), self.Step(8, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x).relu())))


class Unsaved(nn.Module):
    """Tables that the constructor computes and no state dict has; they meet channels, but for one of positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 6), head(6)
        self.register_buffer("table", torch.arange(8.0).cos().view(8, 1, 1), persistent=False)
        self.register_buffer("far", torch.arange(64.0).sin().view(8, 8), persistent=False)
        self.plain = torch.arange(6.0).sin().view(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body((self.stem(x) + self.table).relu() + self.far)
        return self.head(x + self.plain.to(x.device, x.dtype))


class Compares(nn.Module):
    """A block that projects its shortcut where two numbers that it keeps differ; it reads neither otherwise."""

    class Block(nn.Module):
        def __init__(self, dim: int, dim_out: int):
            super().__init__()
            self.dim, self.dim_out = dim, dim_out
            self.conv, self.project = conv_bn(dim, dim_out), nn.Conv2d(dim, dim_out, 1)

        def forward(self, x: Tensor) -> Tensor:
            count, channels, height, width = x.shape
            x = x.reshape(count, channels, -1).reshape(count, channels, height, width)
            made = self.conv(x)
            made = made.reshape(count, made.shape[1], -1).reshape(made.shape)
            return F.relu(made + (self.project(x) if self.dim != self.dim_out else x))

    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = conv_bn(3, 8), self.Block(8, 12), head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.first(x)))


class ByName(nn.Module):
    """Modules called by the names of their arguments, blocks that are attributes, and a norm that is told more."""

    class Norm(nn.LayerNorm):
        def forward(self, x: Tensor, order: str = "last") -> Tensor:  # as OpenMMLab's LN2d
            return super().forward(x) if order == "last" else super().forward(x.movedim(1, -1)).movedim(-1, 1)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ready, self.outer = ByName.Norm(8), nn.Conv2d(6, 8, 3, padding=1)
            self.inner, self.norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.gain = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, hidden: Tensor, scale: float = 1.0) -> Tensor:
            inner = self.norm(input=self.inner(input=self.ready(x=hidden, order="first"))).relu()
            return hidden + scale * self.gain * self.outer(input=inner)

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second, self.third = conv_bn(3, 8), self.Block(), self.Block(), self.Block()
        self.ready, self.head = self.Norm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in (self.first, self.second, self.third):
            x = block(scale=0.5, hidden=x)
        return self.head(input=self.ready(x=x.movedim(1, -1).mean((1, 2)), order="last"))


EXACT = {
    "plain": Plain,
    "without norm": WithoutNorm,
    "residual": Residual,
    "sequential residual": sequential_residual,
    "concat": Concat,
    "squeeze-excite": SqueezeExcite,
    "statistics": Statistics,
    "listed parameters": ListedParameters,
    "resampled": Resampled,
    "depthwise": Depthwise,
    "depthwise with multiplier": lambda: Depthwise(2),
    "flatten to linear": FlattenToLinear,
    "padded shortcut": PaddedShortcut,
    "shared": Shared,
    "two names": TwoNames,
    "lends to stages": LendsToStages,
    "called by name": ByName,
    "rolled": Rolled,
    "pixel shuffle": PixelShuffled,
    "spatial attention": SpatialAttention,
    "nested": Nested,
    "checked sizes": Checked,
    "norm without affine": lambda: Plain(affine=False),
    "norm without statistics": lambda: Plain(track_running_stats=False),
    "norm with nothing": lambda: Plain(affine=False, track_running_stats=False),
    "norm with plain averages": lambda: Plain(momentum=None),
}
PARTLY_FROZEN = {
    "tapped": Tapped,
    "chunked": Chunked,
    "shuffled": Shuffled,
    "hard-coded": HardCoded,
    "shared in blocks": SharedInBlocks,
    "tied weights": Tied,
    "unknown operation": UnknownOperation,
    "input added": InputAdded,
    "layer norm": Normed,
    "grouped": Grouped,
    "reads a weight": ReadsWeight,
    "subclassed": Subclassed,
    "own forwards": OwnForwards,
    "auxiliary head": AuxiliaryHead,
    "hidden region": HiddenRegion,
    "conditional convolutions": Conditional,
    "transposed": Transposed,
    "parametrised": Parametrised,
    "functional norms": FunctionalNorms,
    "various": Various,
    "own norms": OwnNorms,
    "averages that are no norms": NoNorms,
    "best class": BestClass,
    "compared numbers": Compares,
    "recurrent": Recurrent,
    "standardised": StandardisedNet,
    "masked": MaskedNet,
}
ALL = EXACT | PARTLY_FROZEN | TOKEN_NETS
CUT_ALONE = {  # what is hard in them is traced and cut
    "sliced": Sliced,
    "numbered": Numbered,
    "detector": Detects,
    "listed": Listed,
    "unsaved buffer": Unsaved,
    "decoder": Decoder,
    "pyramid": Pyramid,
    "one head": lambda: OneHeadReduced(checks=False),
    "one head that checks": lambda: OneHeadReduced(checks=True),
}


@cache
def graph_of(name: str) -> Graph:
    """The graph of one of them, traced once in a process: that takes most of a small test's time."""
    return trace(perturbed((ALL | CUT_ALONE)[name]()), images())
