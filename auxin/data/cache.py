"""Decoded images on disk, so that a set is decoded once: safetensors files, written atomically, checksummed."""

import hashlib
import json
import os
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from auxin.data.dataset import Decoded

FORMAT = 1
"""Raised whenever the meaning of a cache file changes, so that older files are decoded again."""


def cache_folder() -> Path:
    """Return where decoded sets are kept: ``$AUXIN_CACHE``, else ``auxin`` in the user's cache folder."""
    if chosen := os.environ.get("AUXIN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "auxin"


def cache_name(fingerprint: Any) -> str:
    """Return the file name for a source, from JSON data that says all that its decoded images depend on."""
    text = json.dumps([FORMAT, fingerprint], sort_keys=True)
    return f"images-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.safetensors"


def read(path: Path) -> Decoded | None:
    """Read a decoded set.

    Args:
        path: The cache file.

    Returns:
        The set, or None if there is no such file or it is damaged; the latter is said in a warning.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["auxin"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        _check(header["checksums"], tensors)
        return Decoded(
            splits={name: (tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in header["splits"]},
            classes=tuple(header["classes"]),
            facts=header["facts"],
            notes=tuple(header["notes"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"The image cache {path} is damaged ({error}); decoding again.", stacklevel=2)
        return None


def write(path: Path, decoded: Decoded) -> None:
    """Write a decoded set; a disk that is full or read-only costs a warning, never the run.

    Args:
        path: The cache file; its folder is made if need be.
        decoded: The set.
    """
    tensors = {}
    for name, (images, labels) in decoded.splits.items():
        tensors[f"{name}.images"], tensors[f"{name}.labels"] = images.contiguous(), labels.contiguous()
    header = {
        "splits": list(decoded.splits),
        "classes": list(decoded.classes),
        "facts": dict(decoded.facts),
        "notes": list(decoded.notes),
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
    }
    scratch: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(descriptor)
        save_file(tensors, scratch, metadata={"auxin": json.dumps(header)})
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"The decoded images could not be cached in {path.parent} ({error}); "
            "set AUXIN_CACHE to a folder with room, or they are decoded again next time.",
            stacklevel=2,
        )
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)


def _check(checksums: dict[str, int], tensors: dict[str, Tensor]) -> None:
    if checksums != {name: _checksum(tensor) for name, tensor in tensors.items()}:
        raise ValueError("its checksums do not match")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data)
