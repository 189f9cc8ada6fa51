"""A tiny convolutional network for tiny images: the demo grows it on 8×8 digits."""

from torch import Tensor, nn

from auxin.models.initialize import kaiming

NUM_CONVOLUTIONS = 3


class SmallCNN(nn.Module):
    """Three 3×3 convolutions with batch norm and ReLU, a pooling after the first, a linear layer.

    Images of any size of at least 2×2 pixels work.

    Shapes:
        Input (N, in_channels, H, W), output (N, num_classes).

    Args:
        num_classes: Number of classes.
        width: Channels of every convolution.
        in_channels: 1 for grey, 3 for colour images.

    Example:
        >>> sum(p.numel() for p in SmallCNN().parameters())
        398
    """

    def __init__(self, num_classes: int = 10, width: int = 4, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(NUM_CONVOLUTIONS):
            channels = in_channels if index == 0 else width
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if index == 0:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        features: Tensor = self.pool(self.features(images))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def small_cnn(num_classes: int = 10, width: int = 4, in_channels: int = 1) -> SmallCNN:
    """Return a fresh ``SmallCNN``; its docstring explains the arguments."""
    return SmallCNN(num_classes, width, in_channels)
