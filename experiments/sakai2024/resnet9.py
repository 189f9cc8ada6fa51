"""ResNet-9, a net with a well-known recipe for CIFAR-10: what do these images give a larger net?"""

from collections.abc import Sequence

from torch import Tensor, nn


def block(in_channels: int, out_channels: int, pool: bool = False) -> nn.Sequential:
    """Return a 3×3 convolution, batch norm, ReLU and, if asked, a 2×2 max pooling."""
    layers = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two blocks of one width and the identity beside them: y = x + f(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(channels, channels), block(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape, (N, channels, H, W)."""
        y: Tensor = x + self.body(x)
        return y


class ResNet9(nn.Module):
    """Eight 3×3 convolutions, four of them in two residual pairs, and a linear layer whose output is divided by eight.

    Shapes:
        Input (N, in_channels, H, W) with H and W of 8 or more, output (N, num_classes).

    Args:
        num_classes: Number of classes.
        width: Channels of the first convolution; the next have two, four and eight times as many. Or all four numbers.
        in_channels: 3 for colour, 1 for grey images.

    Reference:
        D. Page, How to Train Your ResNet 4: Architecture (2018). There: 94 % after 24 epochs.
    """

    def __init__(self, num_classes: int = 10, width: int | Sequence[int] = 64, in_channels: int = 3) -> None:
        super().__init__()
        a, b, c, d = [width, 2 * width, 4 * width, 8 * width] if isinstance(width, int) else width
        self.features = nn.Sequential(
            block(in_channels, a),
            block(a, b, pool=True),
            Residual(b),
            block(b, c, pool=True),
            block(c, d, pool=True),
            Residual(d),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(d, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.classifier(self.features(images)) / 8
        return logits
