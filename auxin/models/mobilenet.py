"""MobileNetV1 for small images, every layer equally narrow at the start."""

from torch import Tensor, nn

from auxin.models.initialize import kaiming

NUM_BLOCKS = 13
STRIDED_BLOCKS = frozenset({2, 4, 6, 12})
"""Blocks, counted from 1, whose depthwise convolution has stride 2."""


class SeparableBlock(nn.Module):
    """A depthwise 3×3 and a pointwise 1×1 convolution, each with batch norm and ReLU.

    Args:
        in_channels: Channels of the input, and of the depthwise convolution.
        out_channels: Channels of the output.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return x


class MobileNetV1(nn.Module):
    """A 3×3 convolution, thirteen depthwise-separable blocks, global average pooling, one linear layer.

    The first convolution has stride 1 (images are small); blocks 2, 4, 6 and 12 halve the map. Images of any size
    work. A depthwise filter follows the channel it reads, so ``features.i.conv1`` grows with the layer before it.

    Shapes:
        Input (N, in_channels, H, W), output (N, num_classes).

    Args:
        num_classes: Number of classes.
        width: Channels of every layer.
        in_channels: 3 for colour, 1 for grey images.

    Reference:
        Howard et al., MobileNets (arXiv 1704.04861), table 1.

    Example:
        >>> sum(p.numel() for p in MobileNetV1().parameters())
        19978
    """

    def __init__(self, num_classes: int = 10, width: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        strides = [2 if block in STRIDED_BLOCKS else 1 for block in range(1, NUM_BLOCKS + 1)]
        self.features = nn.Sequential(*(SeparableBlock(width, width, stride) for stride in strides))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features: Tensor = self.features(self.act1(self.bn1(self.conv1(images))))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


def mobilenet_v1(num_classes: int = 10, width: int = 32, in_channels: int = 3) -> MobileNetV1:
    """Return a fresh ``MobileNetV1``; its docstring explains the arguments."""
    return MobileNetV1(num_classes, width, in_channels)
