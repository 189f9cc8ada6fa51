"""A small vision transformer for small images, written so that its heads and its MLPs' hidden units can grow."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from auxin.models.initialize import kaiming


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / sqrt(d)) v for each head, of d = ``head_dim``, then a linear map.

    The head dimension is an attribute of its own: derived from the stream's width, it would tie the heads to that.

    Args:
        dim: Width of the stream.
        heads: Number of heads.
        head_dim: Width of one head.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the tokens gather from each other, of the shape of ``x``: (N, tokens, dim)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        gathered = functional.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(gathered.transpose(1, 2).reshape(batch, tokens, -1))
        return y


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        dim: Width of the stream.
        heads: Number of heads, each ``dim // heads`` wide.
        hidden: Hidden units of the MLP.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dim // heads)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block, of the shape of ``x``: (N, tokens, dim)."""
        x = x + self.attention(self.norm1(x))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return x


class ViT(nn.Module):
    """Patches as tokens with a learnt position, transformer blocks, the mean over the tokens, one linear layer.

    Heads and hidden units of every block can grow, and a linear layer fits after every MLP's activation. The layer
    norms mix the stream, so growing its width ``dim`` would change the function.

    Shapes:
        Input (N, in_channels, image_size, image_size), output (N, num_classes).

    Args:
        num_classes: Number of classes.
        dim: Width of the stream.
        depth: Number of blocks.
        heads: Heads of each block at the start; they divide ``dim``.
        mlp_ratio: Hidden units of each MLP at the start, as a multiple of ``dim``.
        patch: Height and width of a patch in pixels; it divides ``image_size``.
        in_channels: 3 for colour, 1 for grey images.
        image_size: Height and width of the images in pixels: there is one position per patch.

    Raises:
        ValueError: If the heads do not divide the width, or the patch does not divide the image.

    Reference:
        Dosovitskiy et al., An Image is Worth 16x16 Words (arXiv 2010.11929), section 3.1; the mean over the tokens
        instead of a class token follows Beyer et al. (arXiv 2205.01580).

    Example:
        >>> sum(p.numel() for p in ViT().parameters())
        141898
    """

    def __init__(
        self,
        num_classes: int = 10,
        dim: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        patch: int = 4,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim is {dim}, which {heads} heads do not divide")
        if image_size % patch:
            raise ValueError(f"image_size is {image_size}, which patches of {patch} pixels do not divide")
        self.embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2, dim))
        hidden = round(mlp_ratio * dim)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)
        kaiming(self)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        tokens: Tensor = self.embed(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


def vit(
    num_classes: int = 10,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: float = 2.0,
    patch: int = 4,
    in_channels: int = 3,
    image_size: int = 32,
) -> ViT:
    """Return a fresh ``ViT``; its docstring explains the arguments."""
    return ViT(num_classes, dim, depth, heads, mlp_ratio, patch, in_channels, image_size)
