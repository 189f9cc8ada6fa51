"""Encoded images (PNG, JPEG, ...) to one uint8 tensor."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from auxin.errors import DataError

Record = Mapping[str, Any]
"""One encoded image: ``bytes`` (or None) and ``path`` (or None)."""

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
ROTATED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap height and width."""

CHUNK = 256
"""Images a thread takes at a time."""


@dataclass(frozen=True)
class Header:
    """What the head of an encoded image tells: file format, whether it is grey, height and width."""

    format: str
    grey: bool
    size: tuple[int, int]


def header(record: Record, name: str) -> Header:
    """Read the head of an encoded image without decoding its pixels.

    Args:
        record: The encoded image.
        name: How to call it in an error.

    Returns:
        Its header.

    Raises:
        DataError: If the image cannot be read.
    """
    try:
        with _open(record) as image:
            width, height = image.size
            # A PNG without EXIF before its pixels would be decoded whole in search of it.
            may_turn = image.format != "PNG" or "exif" in image.info
            if may_turn and image.getexif().get(ExifTags.Base.Orientation) in ROTATED:
                width, height = height, width
            return Header(image.format or "unknown", image.mode in GREY_MODES, (height, width))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as an image ({error}): replace or remove it.") from error


def pixels(image: Image.Image, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Convert an image to 8-bit grey or colour of the given size.

    Palettes are resolved, transparency is laid over white, 16-bit values are divided by 257, and an image of another
    size is stretched to it with an antialiased bilinear filter. Floating point pixels and integers wider than 16 bits
    have no agreed range: they are refused with a ``ValueError``.

    Args:
        image: Any image PIL can open.
        channels: 1 for grey, 3 for colour.
        size: Height and width wanted.

    Returns:
        uint8, (H, W, channels).
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _narrow(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(*size, channels)


def decode(
    records: Sequence[Record], names: Sequence[str], channels: int, size: tuple[int, int], *, title: str
) -> Tensor:
    """Decode images to one tensor, in threads, with a progress bar on a terminal.

    An image that cannot be decoded, or a result larger than the machine's memory, is a ``DataError``.

    Args:
        records: The encoded images.
        names: How to call each in an error.
        channels: 1 for grey, 3 for colour.
        size: Height and width of the result.
        title: Text beside the progress bar.

    Returns:
        uint8, (N, channels, H, W).
    """
    _check_memory(len(records) * channels * size[0] * size[1], size)
    out = np.empty((len(records), channels, *size), dtype=np.uint8)

    def work(start: int) -> int:
        stop = min(start + CHUNK, len(records))
        for index in range(start, stop):
            try:
                with _open(records[index]) as image:
                    out[index] = pixels(image, channels, size).transpose(2, 0, 1)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{names[index]} cannot be decoded ({error}): replace or remove it.") from error
        return stop - start

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(title, total=len(records))
        with ThreadPoolExecutor(_num_threads(size)) as threads:
            for done in threads.map(work, range(0, len(records), CHUNK)):
                progress.advance(task, done)
    return torch.from_numpy(out)


def common_size(headers: Sequence[Header]) -> tuple[int, int]:
    """Return the most frequent (height, width); among equally frequent ones the smallest."""
    counts = Counter(head.size for head in headers)
    return min(counts, key=lambda size: (-counts[size], size[0] * size[1], size))


def _open(record: Record) -> Image.Image:
    return Image.open(io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"])


def _narrow(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels, of mode {image.mode}, are neither 8 nor 16 bits wide")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _num_threads(size: tuple[int, int]) -> int:
    # Python holds its lock for most of the time a tiny image takes, so more threads only wait for each other.
    return 1 if size[0] * size[1] < 128 * 128 else min(8, os.cpu_count() or 1)


def _check_memory(num_bytes: int, size: tuple[int, int]) -> None:
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > 0.8 * memory:
        raise DataError(
            f"The images take {num_bytes / 2**30:.1f} GiB at {size[0]}×{size[1]} pixels, more than this machine "
            "can hold: give a smaller image_size."
        )
