"""VGG16 with batch norm, narrow or shallow at the start: the seed that growth experiments widen and deepen."""

from collections.abc import Sequence

from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.models.initialize import kaiming

STAGES = (2, 2, 3, 3, 3)
"""Convolutions of each stage; a 2×2 max pooling ends each."""


class VGG16(nn.Module):
    """Thirteen 3×3 convolutions in five stages, global average pooling, one linear layer.

    Convolutions have no bias and are followed by batch norm and ReLU. Poolings round sizes up (``ceil_mode``), so an
    image of any size works: 32 → 16 → 8 → 4 → 2 → 1, 28 → 14 → 7 → 4 → 2 → 1, and a map of one pixel stays as it is.
    With one ``width`` w, c input channels and k classes it has 9·w·c + 108·w² + 26·w + k·(w + 1) parameters.

    Shapes:
        Input (N, in_channels, H, W), output (N, num_classes).

    Args:
        num_classes: Number of classes.
        width: Channels of every convolution, or of each stage's.
        in_channels: 3 for colour, 1 for grey images.
        stages: Convolutions of each stage; with fewer it is a shallow seed of VGG16.

    Raises:
        ConfigError: If width or stages do not name all five stages.

    Reference:
        Simonyan and Zisserman, Very Deep Convolutional Networks (arXiv 1409.1556), table 1, column D.

    Example:
        >>> sum(p.numel() for p in VGG16().parameters())
        28666
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int | Sequence[int] = 16,
        in_channels: int = 3,
        stages: Sequence[int] = STAGES,
    ) -> None:
        super().__init__()
        widths = [width] * len(STAGES) if isinstance(width, int) else list(width)
        if len(widths) != len(STAGES) or len(stages) != len(STAGES) or min(*widths, *stages) < 1:
            raise ConfigError(
                f"VGG16 has {len(STAGES)} stages: give one width or {len(STAGES)}, and {len(STAGES)} numbers of "
                f"layers, each 1 or more, not width={width}, stages={list(stages)}."
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for num_convolutions, size in zip(stages, widths, strict=True):
            for _ in range(num_convolutions):
                layers += [nn.Conv2d(channels, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
                channels = size
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features: Tensor = self.pool(self.features(images))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def vgg16(
    num_classes: int = 10, width: int | Sequence[int] = 16, in_channels: int = 3, stages: Sequence[int] = STAGES
) -> VGG16:
    """Return a fresh ``VGG16``; its docstring explains the arguments."""
    return VGG16(num_classes, width, in_channels, stages)
