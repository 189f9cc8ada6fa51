"""Image-classification sets read with Hugging Face ``datasets``: a hub name, or a local folder of parquet or images."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from auxin.data.columns import choose_splits, class_names, image_column, label_column
from auxin.data.dataset import Decoded, Options
from auxin.data.decode import Header, common_size, decode, header
from auxin.errors import DataError

UNLABELLED = -1
"""What the hub writes as the class label of images whose label is kept secret."""


@dataclass(frozen=True)
class _Rows:
    """The usable rows of one split: encoded images, how to call each, and raw labels."""

    records: list[dict[str, Any]]
    names: list[str]
    labels: list[Any]


class HuggingFace:
    """A set that ``datasets`` can build.

    Args:
        source: The user's name for it.
        builder: What ``datasets`` made of that name.
        options: The user's choices.
        root: The local folder, or None for a set of the hub.
    """

    def __init__(self, source: str, builder: datasets.DatasetBuilder, options: Options, root: Path | None) -> None:
        self.source = source
        self.builder = builder
        self.options = options
        self.fingerprint = [_files(builder, root), asdict(options)]

    def decode(self) -> Decoded:
        """Read and decode all images of the splits that auxin uses.

        Returns:
            The decoded set.

        Raises:
            DataError: If the set cannot be read as images with labels.
        """
        tables = self._tables()
        features = next(iter(tables.values())).features
        images = image_column(features, self.options.image_column)
        labels = label_column(features, self.options.label_column)
        notes: list[str] = []
        rows = {name: _rows(table, name, images, labels, notes) for name, table in tables.items()}
        labelled = [name for name, part in rows.items() if part.labels]
        if not labelled:
            raise DataError(f"No image of {self.source!r} has a label in column {labels!r}: name another column.")
        chosen = choose_splits(labelled)
        rows = {ours: rows[theirs] for ours, theirs in chosen.items()}
        notes += [f"Split {theirs!r} serves as {ours}." for ours, theirs in chosen.items() if theirs != ours]
        values = list(dict.fromkeys(value for part in rows.values() for value in part.labels))
        names, label_of = class_names(features[labels], values, labels)
        heads = {split: list(map(header, part.records, part.names)) for split, part in rows.items()}
        all_heads = [head for part in heads.values() for head in part]
        channels, size = self._format(all_heads, notes)
        splits: dict[str, tuple[Tensor, Tensor]] = {}
        for split, part in rows.items():
            title = f"Decoding {len(part.labels):,} {split} images"
            decoded = decode(part.records, part.names, channels, size, title=title)
            splits[split] = decoded, torch.tensor([_index(label_of, value, labels) for value in part.labels])
        facts = {
            "origin": f"{self.source} read with datasets {datasets.__version__}",
            "formats": dict(Counter(head.format for head in all_heads)),
            "image_column": images,
            "label_column": labels,
            "splits": chosen,
        }
        return Decoded(splits=splits, classes=names, facts=facts, notes=tuple(notes))

    def _tables(self) -> dict[str, datasets.Dataset]:
        with _quiet(), _explained(self.source):
            self.builder.download_and_prepare()
            return dict(self.builder.as_dataset())

    def _format(self, heads: list[Header], notes: list[str]) -> tuple[int, tuple[int, int]]:
        """Return channels and (height, width) of the result."""
        channels = self.options.channels or (1 if all(head.grey for head in heads) else 3)
        size = self.options.image_size or common_size(heads)
        resized = sum(head.size != size for head in heads)
        if resized:
            notes.append(
                f"{resized} of {len(heads)} images were resized to {size[0]}×{size[1]}; image_size sets another."
            )
        lossy = sum(head.format == "JPEG" for head in heads)
        if lossy:
            notes.append(f"{lossy} of {len(heads)} images are stored as JPEG, which loses detail.")
        return channels, size


def open_source(name: str, options: Options) -> HuggingFace:
    """Find a set by hub name or local folder, without reading its images yet.

    Args:
        name: For example ``uoft-cs/cifar10`` or ``../data/cifar10``.
        options: The user's choices.

    Returns:
        The source.

    Raises:
        DataError: If there is no such set, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{name} is a file: name the folder it is in.")
    if not folder.exists() and (name.startswith((".", "~")) or folder.is_absolute() or len(folder.parts) > 2):
        raise DataError(f"There is no folder {name}: correct the path, or give a set's name on the hub.")
    local = folder.is_dir()
    with _quiet(), _explained(name):
        builder = datasets.load_dataset_builder(str(folder) if local else name, options.config)
    return HuggingFace(name, builder, options, folder.resolve() if local else None)


def _files(builder: datasets.DatasetBuilder, root: Path | None) -> list[Any]:
    # Name, size and time of change of each local file; addresses on the hub hold the commit.
    found: list[Any] = [builder.config.name]
    for split, files in (builder.config.data_files or {}).items():
        for file in files:
            if root is not None and os.path.isfile(file):
                status = os.stat(file)
                found.append([str(split), os.path.relpath(file, root), status.st_size, status.st_mtime_ns])
            else:
                found.append([str(split), file])
    # Without a connection the hub's files are not listed; the folder of the downloaded copy then names the version.
    return found if len(found) > 1 else [*found, builder.cache_dir]


def _rows(table: datasets.Dataset, split: str, images: str, labels: str, notes: list[str]) -> _Rows:
    # Rows that lack an image or a label are left out, and counted in the notes.
    try:
        encoded = table.select_columns([images]).cast_column(images, datasets.Image(decode=False))
        records = encoded.data.column(images).to_pylist()
    except (NotImplementedError, TypeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"Column {images!r} does not hold encoded images: name another with image_column.") from error
    values = table.data.column(labels).to_pylist()
    secret = UNLABELLED if isinstance(table.features[labels], datasets.ClassLabel) else None
    keep = [
        index
        for index, (record, value) in enumerate(zip(records, values, strict=True))
        if value is not None and value != secret and record and (record["bytes"] or record["path"])
    ]
    if len(keep) < len(values):
        notes.append(f"{len(values) - len(keep)} of {len(values)} rows of split {split!r} lack an image or a label.")
    return _Rows(
        records=[records[index] for index in keep],
        names=[_called(records[index], index, split) for index in keep],
        labels=[values[index] for index in keep],
    )


def _called(record: dict[str, Any], index: int, split: str) -> str:
    path = f" ({record['path']})" if record["path"] else ""
    return f"Image {index} of split {split!r}{path}"


def _index(label_of: dict[Any, int], value: Any, column: str) -> int:
    try:
        return label_of[value]
    except KeyError:
        raise DataError(f"Column {column!r} holds label {value!r}, for which the set names no class.") from None


@contextmanager
def _quiet() -> Iterator[None]:
    # No bars in a log file; nothing about README files without a header, nor about each attempt to reach the hub,
    # since the error that follows the last one says it all.
    loggers = [logging.getLogger(name) for name in ("huggingface_hub.repocard", "huggingface_hub.utils._http")]
    levels = [logger.level for logger in loggers]
    bars = not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if bars and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _explained(source: str) -> Iterator[None]:
    # Whatever datasets and its network stack raise becomes one sentence.
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"There is no data set {source!r} on the hub, or it needs a login: correct the name or give a folder."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise DataError(
            f"The hub cannot be reached to read {source!r}: check the connection, or give a local folder."
        ) from error
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"Data set {source!r} holds no rows: check its files, or fetch them again.") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"Data set {source!r} cannot be read: {reason}") from error
