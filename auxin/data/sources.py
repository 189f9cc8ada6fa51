"""``load``: from a name to train, validation and test tensors."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auxin.data.cache import cache_folder, cache_name, read, write
from auxin.data.dataset import Decoded, ImageData, Options, Source, channel_statistics
from auxin.data.splits import hold_out
from auxin.errors import DataError

EMBEDDED = {"digits": "auxin.data.digits"}
"""Sources that need no files, name → module; every other name is a folder or a set of the hub."""


def load(
    source: str = "digits",
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    cache: bool = True,
    cache_dir: str | Path | None = None,
) -> ImageData:
    """Load an image-classification set as uint8 tensors.

    Columns, grey or colour, image size and splits are found by themselves. A validation part is held out of the
    training images, with the same mix of classes; where the set brings a validation split beside its test split, that
    is taken instead. A set that is a single split also gives up a test part first. What was chosen is said in
    ``description["notes"]``. Decoded images are cached on disk, keyed by the files' names, sizes and times.

    Args:
        source: ``digits`` (embedded), a local folder (parquet files, or images in a folder for each class), or the
            name of a set on the Hugging Face hub such as ``uoft-cs/cifar10``.
        val_fraction: Share of the training images held out for validation, in [0, 1).
        test_fraction: Share of the images held out for test, where the source has one split only.
        seed: Seed of both draws; keep it while the seeds of training vary, or test sets differ.
        image_size: Side, or height and width, to resize to; by default the most common size of the set.
        channels: 1 for grey, 3 for colour; by default grey where all images are.
        image_column: Name of the column of images, where the default is not wanted.
        label_column: Name of the column of labels (CIFAR-100: ``fine_label`` by default, or ``coarse_label``).
        config: Name of the configuration, for sets that have several.
        cache: Whether to read and write the cache of decoded images.
        cache_dir: Where it is; by default ``$AUXIN_CACHE``, else ``auxin`` in the user's cache folder.

    Returns:
        The image set, on the CPU.

    Raises:
        DataError: If the source cannot be found, or cannot be read as images with labels.

    Example:
        >>> load("digits")
        ImageData(digits: 1294 + 144 + 359 images (train + val + test), 1×8×8, 10 classes)
    """
    for fraction in (val_fraction, test_fraction):
        if not 0 <= fraction < 1:
            raise DataError(f"A held-out fraction of {fraction} is not usable: give a number from 0 to below 1.")
    options = Options(_size(image_size), _channels(channels), image_column, label_column, config)
    opened = _open(source, options)
    folder = Path(cache_dir).expanduser() if cache_dir is not None else cache_folder()
    decoded = _decoded(opened, folder / cache_name(opened.fingerprint) if cache else None)
    return _split(decoded, source, val_fraction, test_fraction, seed, cache_name(opened.fingerprint))


def _open(source: str, options: Options) -> Source:
    # By name, because each source needs a heavy library that takes a second to import and that the other does not use.
    module = EMBEDDED.get(source, "auxin.data.huggingface")
    try:
        opened: Source = importlib.import_module(module).open_source(source, options)
    except ModuleNotFoundError as error:
        raise DataError(f"Loading {source!r} needs the package {error.name!r}: install auxin[app].") from error
    return opened


def _decoded(source: Source, path: Path | None) -> Decoded:
    found = read(path) if path is not None else None
    if found is not None:
        return found
    decoded = source.decode()
    if path is not None:
        write(path, decoded)
    return decoded


def _split(
    decoded: Decoded, source: str, val_fraction: float, test_fraction: float, seed: int, fingerprint: str
) -> ImageData:
    parts, notes = dict(decoded.splits), list(decoded.notes)
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        if name in parts:
            if name == "val" and fraction > 0:
                notes.append("The set's own validation split is used; val_fraction is not.")
            continue
        images, labels = parts["train"]
        kept, held = hold_out(labels, fraction, seed)
        if len(held):
            parts["train"], parts[name] = (images[kept], labels[kept]), (images[held], labels[held])
            notes.append(f"{len(held)} of {len(labels)} training images were held out as {name} (seed {seed}).")
        else:
            parts[name] = images[:0], labels[:0]
    mean, std = channel_statistics(parts["train"][0])
    description: dict[str, Any] = {
        "source": source,
        "fingerprint": fingerprint.removeprefix("images-").removesuffix(".safetensors"),
        **decoded.facts,
        "sizes": {name: len(parts[name][1]) for name in ("train", "val", "test")},
        "seed": seed,
        "notes": notes,
    }
    tensors: dict[str, Tensor] = {}
    for name in ("train", "val", "test"):
        tensors[f"{name}_images"], tensors[f"{name}_labels"] = parts[name][0], parts[name][1].to(torch.int64)
    return ImageData(**tensors, classes=decoded.classes, mean=mean, std=std, description=description)


def _size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise DataError(f"An image_size of {image_size} is not usable: give one positive side, or height and width.")
    return sides[0], sides[1]


def _channels(channels: int | None) -> int | None:
    if channels not in (None, 1, 3):
        raise DataError(f"Images of {channels} channels are not supported: give 1 for grey or 3 for colour.")
    return channels
