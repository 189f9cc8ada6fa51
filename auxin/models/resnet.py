"""ResNet-20 for CIFAR, with projection shortcuts so that each stage has a width of its own."""

from collections.abc import Sequence

from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.models.initialize import kaiming

BLOCKS = (3, 3, 3)
"""Basic blocks of each stage."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut: y = ReLU(f(x) + s(x)).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        project: Whether s is a 1×1 convolution with batch norm; otherwise s is the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
            if project
            else nn.Identity()
        )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        residual: Tensor = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        y: Tensor = self.act2(residual + self.shortcut(x))
        return y


class ResNet20(nn.Module):
    """A 3×3 convolution, three stages of three basic blocks, global average pooling, one linear layer.

    Stages are ``width``, 2·``width`` and 4·``width`` wide; the second and third halve the map and begin with a
    1×1 projection (option B of the paper). A zero-padded shortcut (option A) would tie all stages to one width.
    Images of any size work.

    Shapes:
        Input (N, in_channels, H, W), output (N, num_classes).

    Args:
        num_classes: Number of classes.
        width: Channels of the first stage.
        in_channels: 3 for colour, 1 for grey images.
        blocks: Basic blocks of each stage; with fewer it is a shallow seed of ResNet-20, with more a deeper net.

    Raises:
        ConfigError: If blocks does not name all three stages.

    Reference:
        He et al., Deep Residual Learning (arXiv 1512.03385), section 4.2.

    Example:
        >>> sum(p.numel() for p in ResNet20().parameters())
        272474
    """

    def __init__(
        self, num_classes: int = 10, width: int = 16, in_channels: int = 3, blocks: Sequence[int] = BLOCKS
    ) -> None:
        super().__init__()
        if len(blocks) != len(BLOCKS) or min(blocks) < 1:
            raise ConfigError(
                f"ResNet-20 has three stages: give three numbers of blocks, 1 or more, not {list(blocks)}."
            )
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.stage1 = self._stage(width, width, blocks[0])
        self.stage2 = self._stage(width, 2 * width, blocks[1])
        self.stage3 = self._stage(2 * width, 4 * width, blocks[2])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, num_classes)
        kaiming(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
        new_width = in_channels != out_channels
        first = BasicBlock(in_channels, out_channels, stride=2 if new_width else 1, project=new_width)
        rest = (BasicBlock(out_channels, out_channels, stride=1, project=False) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features: Tensor = self.act1(self.bn1(self.conv1(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


def resnet20(num_classes: int = 10, width: int = 16, in_channels: int = 3, blocks: Sequence[int] = BLOCKS) -> ResNet20:
    """Return a fresh ``ResNet20``; its docstring explains the arguments."""
    return ResNet20(num_classes, width, in_channels, blocks)
