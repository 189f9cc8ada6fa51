"""Batches of normalised, augmented images, made on the device from one uint8 tensor."""

import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from auxin.data.augment import crop_flip, cutout_, normalise
from auxin.data.dataset import ImageData, Split
from auxin.errors import ConfigError


class Loader:
    """Iterates over one part of an image set in batches of (images, labels), all on the part's device.

    A training loader shuffles, crops at random from a padded image, flips left to right where that makes sense, and
    may cut squares out; an evaluation loader does none of it. All random numbers of an epoch are drawn on the CPU from
    a generator seeded with (seed, epoch), so an epoch gives the same batches after a resume, and on every device.
    Each full pass moves on to the next epoch by itself; a training loop that calls ``set_epoch`` fixes it instead.

    Shapes:
        images (B, C, H, W) in ``dtype``, labels (B,) int64.

    Args:
        data: The image set.
        split: ``train``, ``val`` or ``test``.
        batch_size: Images a batch; the last batch may be smaller.
        seed: Seed of order and augmentation.
        augment: Whether to crop, flip and cut out; by default for ``train`` only.
        shuffle: Whether to visit the images in a new order every epoch; by default for ``train`` only.
        drop_last: Whether to leave a smaller last batch out.
        padding: Pixels of padding around the random crop; by default an eighth of the shorter side (4 for 32).
        padding_mode: ``zeros`` or ``reflect``.
        flip: Whether to mirror half of the images; by default for colour sets whose class names are not single
            letters or digits, which do not survive a mirror.
        cutout: Side in pixels of the square that Cutout blanks; 0 for none.
        dtype: Floating point type of the images.
        channels_last: Whether the images are laid out channel by channel for each pixel.

    Raises:
        ConfigError: If a setting is out of range, or the part holds no image.

    Example:
        >>> from auxin.data import load
        >>> loader = Loader(load("digits"), "train", batch_size=64)
        >>> images, labels = next(iter(loader))
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """

    def __init__(
        self,
        data: ImageData,
        split: Split = "train",
        *,
        batch_size: int = 128,
        seed: int = 0,
        augment: bool | None = None,
        shuffle: bool | None = None,
        drop_last: bool = False,
        padding: int | None = None,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        flip: bool | None = None,
        cutout: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        training = split == "train"
        self.images, self.labels = data.part(split)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.augment = training if augment is None else augment
        self.shuffle = training if shuffle is None else shuffle
        self.drop_last = drop_last
        self.padding = min(data.image_size) // 8 if padding is None else padding
        self.padding_mode = padding_mode
        self.flip = _flip_makes_sense(data) if flip is None else flip
        self.cutout = cutout
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._mean = torch.tensor(data.mean, device=data.device).view(-1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(data.std, device=data.device).view(-1, 1, 1) * 255)
        self._check(split)

    def _check(self, split: str) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"A batch size of {self.batch_size} is not usable: give 1 or more.")
        if not 0 <= self.padding < min(self.images.shape[2:]):
            raise ConfigError(f"Crop padding of {self.padding} pixels must be at least 0 and smaller than the image.")
        if self.padding_mode not in ("zeros", "reflect"):
            raise ConfigError(f"There is no padding mode {self.padding_mode!r}: choose zeros or reflect.")
        if self.cutout < 0:
            raise ConfigError(f"A Cutout square of {self.cutout} pixels is not usable: give 0 or more.")
        if not self.dtype.is_floating_point:
            raise ConfigError(f"Images cannot be given as {self.dtype}: choose a floating point type.")
        if len(self.labels) == 0:
            raise ConfigError(f"The {split} part holds no image: load the set with a larger fraction for it.")
        if len(self) == 0:
            raise ConfigError(f"The {split} part is smaller than one batch of {self.batch_size}: turn drop_last off.")

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.labels) // self.batch_size if self.drop_last else -(-len(self.labels) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Fix the epoch (0 is the first) whose order and augmentation the next iteration uses."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of the current epoch, then move on to the next one."""
        epoch = self.epoch
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator) if self.shuffle else None
        draws = self._draw(generator) if self.augment else None
        all_labels = self.labels
        if order is not None:
            order = order.to(self.images.device)
            all_labels = all_labels.index_select(0, order)
        # Small tensor calls are what is left to save: those that need no image are made once an epoch.
        chosen = (self.images if order is None else order).split(self.batch_size)
        drawn = [None] * len(chosen) if draws is None else draws.split(self.batch_size, dim=1)
        for batch, labels in enumerate(all_labels.split(self.batch_size)[: len(self)]):
            images = chosen[batch] if order is None else self.images.index_select(0, chosen[batch])
            yield self._transform(images, drawn[batch]), labels
        self.epoch = epoch + 1

    def _draw(self, generator: torch.Generator) -> Tensor:
        """Return top, left, flip, Cutout row and Cutout column of every image of an epoch, int64, (5, N)."""
        num_images, (height, width) = len(self.labels), self.images.shape[2:]
        limits = (2 * self.padding + 1, 2 * self.padding + 1, 2, height, width)
        draws = torch.stack([torch.randint(limit, (num_images,), generator=generator) for limit in limits])
        return draws.to(self.images.device)

    def _transform(self, images: Tensor, draws: Tensor | None) -> Tensor:
        if draws is not None and (self.padding or self.flip):
            flip = draws[2] if self.flip else None
            reflect = self.padding_mode == "reflect"
            images = crop_flip(images, draws[0], draws[1], flip, padding=self.padding, reflect=reflect)
        images = normalise(images, self._mean, self._scale)
        if draws is not None and self.cutout:
            images = cutout_(images, draws[3], draws[4], self.cutout)
        return images.to(dtype=self.dtype, memory_format=self.memory_format)


def _flip_makes_sense(data: ImageData) -> bool:
    characters = all(len(name) == 1 for name in data.classes)
    return data.channels == 3 and not characters


def _mix(seed: int, epoch: int) -> int:
    # torch's CPU generator keeps 32 bits of a seed, so seed and epoch are hashed rather than added or shifted.
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=4).digest())
