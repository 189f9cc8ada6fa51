"""The network that SECNN grows: three blocks, a skip from the first to the head, as small as it starts or grown."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from auxin.models.initialize import kaiming

NUM_BLOCKS = 3
SLOPE = 0.2
"""Slope of every LeakyReLU below 0."""
HEAD_CHANNELS, HEAD_WIDTH = 10, 20
"""Channels of the head's 1×1 convolution and units of its hidden layer."""


class AddedLayer(nn.Module):
    """A 3×3 convolution without bias, batch norm, LeakyReLU: what an event adds to the depth of a block.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's map, of the shape of ``x``."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Block(nn.Module):
    """A 3×3 convolution, dropout, batch norm, LeakyReLU, the added layers, a 2×2 max pooling.

    Args:
        in_channels: Channels of the input.
        channels: Channels of every convolution of the block.
        added: Number of added layers.
        dropout: Share of the convolution's channels set to zero in training.
    """

    def __init__(self, in_channels: int, channels: int, added: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.LeakyReLU(SLOPE)
        self.added = nn.Sequential(*(AddedLayer(channels) for _ in range(added)))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, (N, channels, H // 2, W // 2)."""
        x = self.act(self.bn(self.dropout(self.conv(x))))
        y: Tensor = self.pool(self.added(x))
        return y


class Head(nn.Module):
    """A 1×1 convolution, a hidden linear layer, the logits.

    Args:
        in_channels: Channels of the map it reads.
        pixels: Pixels of that map.
        num_classes: Number of classes.
    """

    def __init__(self, in_channels: int, pixels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, HEAD_CHANNELS, 1)
        self.act1 = nn.LeakyReLU(SLOPE)
        self.hidden = nn.Linear(HEAD_CHANNELS * pixels, HEAD_WIDTH)
        self.bn1 = nn.BatchNorm1d(HEAD_WIDTH)
        self.act2 = nn.LeakyReLU(SLOPE)
        self.dropout = nn.Dropout(0.05)
        self.bn2 = nn.BatchNorm1d(HEAD_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features that the classifier reads, (N, 20)."""
        x = self.act1(self.conv(x)).flatten(1)
        y: Tensor = self.bn2(self.dropout(self.act2(self.bn1(self.hidden(x)))))
        return y


class SECNN(nn.Module):
    """Three blocks; the first one's map, max-pooled to the size of the last one's, is joined to it before the head.

    With c_i channels and n_i added layers in block i, 32×32 colour images and ten classes it has
    30·c_1 + (9·c_1·c_2 + 3·c_2) + (9·c_2·c_3 + 3·c_3) + Σ n_i·(9·c_i² + 2·c_i) + 10·(c_1 + c_3) + 10 + 3510 parameters.

    Shapes:
        Input (N, in_channels, image_size, image_size), output (N, num_classes).

    Args:
        num_classes: Number of classes.
        channels: Channels of each block.
        added: Added layers of each block.
        in_channels: 3 for colour, 1 for grey images.
        image_size: Height and width of the images, at least 8 pixels: the head's hidden layer depends on it.
        dropout: Share of channels that each block's first convolution sets to zero in training; the paper's is 0.1.

    Raises:
        ValueError: If the images are too small, or there are not three blocks.

    Reference:
        Appolinary et al., Self-Expanding Convolutional Neural Networks (arXiv 2401.05686).

    Example:
        >>> sum(p.numel() for p in SECNN().parameters())
        9024
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: Sequence[int] = (16, 16, 16),
        added: Sequence[int] = (0, 0, 0),
        in_channels: int = 3,
        image_size: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(channels) != NUM_BLOCKS or len(added) != NUM_BLOCKS:
            raise ValueError(f"give channels and added one number for each of the {NUM_BLOCKS} blocks")
        if image_size < 2**NUM_BLOCKS:
            raise ValueError(f"image_size is {image_size}, but three poolings need at least {2**NUM_BLOCKS} pixels")
        inputs = (in_channels, *channels[:-1])
        self.blocks = nn.Sequential(*(Block(*sizes, dropout) for sizes in zip(inputs, channels, added, strict=True)))
        self.skip = nn.MaxPool2d(2 ** (NUM_BLOCKS - 1))
        self.head = Head(channels[0] + channels[-1], (image_size // 2**NUM_BLOCKS) ** 2, num_classes)
        self.classifier = nn.Linear(HEAD_WIDTH, num_classes)
        kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        first: Tensor = self.blocks[0](images)
        last: Tensor = self.blocks[2](self.blocks[1](first))
        logits: Tensor = self.classifier(self.head(torch.cat([self.skip(first), last], dim=1)))
        return logits


def secnn(
    num_classes: int = 10,
    channels: Sequence[int] = (16, 16, 16),
    added: Sequence[int] = (0, 0, 0),
    in_channels: int = 3,
    image_size: int = 32,
    dropout: float = 0.1,
) -> SECNN:
    """Return a fresh ``SECNN``; its docstring explains the arguments."""
    return SECNN(num_classes, channels, added, in_channels, image_size, dropout)
