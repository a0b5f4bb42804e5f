"""The residual networks for 32x32 images that the paper prunes: depths 20 to 110, and 164 with bottlenecks."""

from torch import Tensor, nn

from tas.errors import ModelError

BASIC_DEPTHS = (20, 32, 44, 56, 110)
BOTTLENECK_DEPTHS = (164,)
STAGE_WIDTHS = (16, 32, 64)


def cifar_resnet(depth: int, num_classes: int = 10) -> "CifarResNet":
    """Build the residual network of the paper with fresh weights.

    Args:
        depth: number of layers, counted without shortcuts: 20, 32, 44, 56, 110 (basic blocks) or 164 (bottlenecks).
        num_classes: outputs of the classifier; >= 1.

    Shape:
        The model maps (batch, 3, height, width) to (batch, num_classes); height and width are multiples of 4.

    Raises:
        ModelError: there is no such depth, or `num_classes` is below 1.

    Source:
        He et al., 2016, section 4.2, https://arxiv.org/abs/1512.03385; shortcuts as in Dong and Yang, 2019,
        https://arxiv.org/abs/1905.09717: 2x2 average pooling and a 1x1 convolution.

    Example:
        >>> cifar_resnet(20, num_classes=100)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 100])
    """
    if depth not in BASIC_DEPTHS + BOTTLENECK_DEPTHS:
        choices = ", ".join(map(str, BASIC_DEPTHS + BOTTLENECK_DEPTHS))
        raise ModelError(f"there is no cifar_resnet of depth {depth!r}; choose one of {choices}")
    if num_classes < 1:
        raise ModelError(f"a cifar_resnet needs at least 1 class, got num_classes={num_classes}")
    if depth in BOTTLENECK_DEPTHS:
        return CifarResNet(Bottleneck, (depth - 2) // 9, num_classes)
    return CifarResNet(BasicBlock, (depth - 2) // 6, num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added.

    Shape:
        (batch, in_channels, height, width) to (batch, channels, height / stride, width / stride).
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels * self.expansion, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the input."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between a 1x1 that narrows and a 1x1 that widens, around which the input is added.

    Shape:
        (batch, in_channels, height, width) to (batch, 4 * channels, height / stride, width / stride).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.shortcut = _shortcut(in_channels, channels * self.expansion, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the input."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A stem, three stages of residual blocks and a classifier; built by `cifar_resnet`.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        num_blocks: in each of the three stages.
        num_classes: outputs of the classifier.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], num_blocks: int, num_classes: int):
        super().__init__()
        narrow, middle, wide = STAGE_WIDTHS
        self.conv1 = nn.Conv2d(3, narrow, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.relu = nn.ReLU()
        self.layer1 = _stage(block, narrow, narrow, num_blocks, stride=1)
        self.layer2 = _stage(block, narrow * block.expansion, middle, num_blocks, stride=2)
        self.layer3 = _stage(block, middle * block.expansion, wide, num_blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(wide * block.expansion, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(self.pool(out).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, num_blocks: int, *, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(1, num_blocks)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    if stride == 2:
        return nn.Sequential(nn.AvgPool2d(2, stride=2), convolution)
    if in_channels != out_channels:
        # Only the first bottleneck: the authors' code normalises a shortcut that does not pool.
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    return nn.Identity()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)
