"""Checkpoints that survive a kill: a safetensors file and the JSON manifest that makes it valid, never a pickle.

A save writes the tensors under a name no other save used, then replaces the manifest, which names that file and its
SHA-256. Replacing the manifest is the one moment at which the new pair takes the place of the old one; before it the
old pair is whole, and what an interrupted save left behind is removed by the next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from auxin.errors import CheckpointError

FORMAT = "auxin-checkpoint"
VERSION = 1
Stage = Literal["trained", "grown"]


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run, complete enough to go on from.

    It holds no state of a random generator: each part of each epoch seeds its own (``reproducible.seed_stage``).

    Attributes:
        config: The run's configuration, ``RunConfig.to_dict``.
        epoch: The epoch that was just trained; 0 is the first.
        stage: "trained" before that epoch's growth decision, "grown" after an event.
        model: ``model.state_dict()``.
        optimizer: What ``optimizer.state_of`` returned.
        history: ``History.to_json``.
        grower: ``Grower.state_dict``.
        schedule: State of the learning rate.
        metrics: Metrics of that epoch, the size of the model included.
        seconds: Time trained so far.
        run: What the Trainer adds: facts of the images, the best epoch of this size, why growth ended, the costs, and
            on which commit and machine it was trained each time it was resumed.
    """

    config: dict[str, Any]
    epoch: int
    stage: Stage
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    history: list[dict[str, Any]]
    grower: dict[str, Any]
    schedule: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    run: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, manifest: Path) -> Path:
    """Write a checkpoint, replacing the one that ``manifest`` names in one atomic step.

    Args:
        checkpoint: What to save.
        manifest: Path of the JSON file; the tensors go beside it. Its folder is made where absent.

    Returns:
        The path of the manifest.

    Raises:
        CheckpointError: If the files cannot be written, for example because the disk is full; the checkpoint that was
            there before is untouched.
    """
    tensors: dict[str, Tensor] = {}
    fields = {name: _take_tensors(getattr(checkpoint, name), name, tensors) for name in Checkpoint.__dataclass_fields__}
    blob = safetensors.torch.save(tensors)
    tensor_file = manifest.with_name(f"{manifest.stem}-{checkpoint.epoch:05d}-{secrets.token_hex(4)}.safetensors")
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tensors": {"file": tensor_file.name, "bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()},
        **fields,
    }
    document["sha256"] = _digest(document)
    draft = tensor_file.with_suffix(".json.part")
    try:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        write_durably(tensor_file, blob)
        write_durably(draft, json.dumps(document, indent=1).encode())
        os.replace(draft, manifest)
        _sync_folder(manifest.parent)
    except OSError as error:
        for leftover in (tensor_file, draft):
            _discard(leftover)
        raise CheckpointError(
            f"Checkpoint {not_written(manifest, error)} and run auxin resume; the one before it is intact."
        ) from error
    _clean(manifest, tensor_file.name)
    return manifest


def load(manifest: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte of it.

    Args:
        manifest: Path of the JSON file.

    Returns:
        The checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: If it is missing, damaged, truncated, of another format or of another version.
    """
    document = _read_manifest(manifest)
    # A field with a default is newer than the file, if the file lacks it.
    known = [f.name for f in fields(Checkpoint) if f.name in document or f.default_factory is f.default is MISSING]
    try:
        tensors = _read_tensors(manifest, document["tensors"])
        values = {name: _put_tensors(document[name], tensors) for name in known}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"Checkpoint {manifest} is incomplete: it has no {error}; use another one.") from error
    return Checkpoint(**values)


def _read_manifest(manifest: Path) -> dict[str, Any]:
    try:
        text = manifest.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"There is no checkpoint at {manifest}: {error.strerror}; give the folder of a run."
        ) from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"Checkpoint {manifest} is truncated or not JSON: use another one, such as a rung of the run's ladder."
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{manifest} is not an auxin checkpoint: give one that auxin train wrote.")
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"Checkpoint {manifest} has version {document.get('version')} and this auxin reads version {VERSION}: "
            "use the auxin that wrote it."
        )
    if document.pop("sha256", None) != _digest(document):
        raise CheckpointError(f"Checkpoint {manifest} is damaged: its checksum does not match; use another one.")
    return document


def _read_tensors(manifest: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    path = manifest.with_name(str(entry["file"]))
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {manifest} lacks its tensor file {path.name}: copy both files of a checkpoint together."
        ) from error
    if len(blob) != entry["bytes"]:
        raise CheckpointError(
            f"Checkpoint {path} is truncated: it has {len(blob)} of {entry['bytes']} bytes; use another one."
        )
    if hashlib.sha256(blob).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"Checkpoint {path} is damaged: its checksum does not match; use another one.")
    try:
        return dict(safetensors.torch.load(blob))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"Checkpoint {path} is not a safetensors file: {error}; use another one.") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk; an ``OSError`` is passed on.

    Args:
        path: The file; replaced where it exists.
        data: Its whole content.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Put a file in place in one step: whenever the process is killed, the old file or the new one is there, whole.

    Args:
        path: The file; replaced where it exists.
        data: Its whole content.

    Raises:
        CheckpointError: If it cannot be written, for example because the disk is full; the old file is untouched.
    """
    draft = path.with_name(path.name + ".part")
    try:
        write_durably(draft, data)
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        _discard(draft)
        raise CheckpointError(f"{not_written(path, error)} and try again.") from error


def not_written(path: Path, error: OSError) -> str:
    """Return the beginning of a sentence: why a file could not be written, and what to do first.

    Args:
        path: The file.
        error: What writing it raised.

    Example:
        >>> not_written(Path("a.json"), OSError(errno.ENOSPC, "No space left on device"))
        'a.json could not be written because the disk is full: make room'
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} could not be written because the disk is full: make room"
    return f"{path} could not be written ({error.strerror or error}): check its folder"


def clean(manifest: Path) -> None:
    """Remove what a save left that was killed at its very end, beside the checkpoint that it made.

    Args:
        manifest: Path of the JSON file.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    _clean(manifest, _read_manifest(manifest)["tensors"]["file"])


def remove(manifest: Path) -> None:
    """Remove a checkpoint, the manifest first, so that a kill leaves no manifest without tensors.

    Args:
        manifest: Path of the JSON file; may be absent.
    """
    manifest.unlink(missing_ok=True)
    _clean(manifest, "")


def _discard(draft: Path) -> None:
    with suppress(OSError):  # the disk may have become read-only
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; some file systems cannot sync a folder, and need not.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _clean(manifest: Path, keep: str) -> None:
    """Remove the tensor files and drafts of earlier saves; failing to is no reason to stop a run."""
    # Not "rung-00-best-...", which belongs to another manifest.
    ours = re.compile(rf"{re.escape(manifest.stem)}-\d{{5,}}-[0-9a-f]{{8}}\.(safetensors|json\.part)")
    for path in manifest.parent.glob(f"{manifest.stem}-*"):
        if path.name != keep and ours.fullmatch(path.name):
            try:
                path.unlink()
            except OSError:
                continue


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    # Returns value as JSON; its tensors move into ``tensors``, replaced by {"$tensor": key}.
    if isinstance(value, Tensor):
        # clone: tied weights share storage, which safetensors refuses; the format knows no strides.
        tensors[path] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()
        return {"$tensor": path}
    if isinstance(value, Mapping):
        return {str(key): _take_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_tensors(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}  # JSON has no word for it
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"A checkpoint cannot hold {path}, a {type(value).__name__}: keep tensors, numbers and text.")


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"$tensor"}:
            return tensors[value["$tensor"]]
        if value.keys() == {"$float"}:
            return float(value["$float"])
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value
