"""Where a result comes from: the commit of the code, the machine, the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("auxin", "torch", "numpy", "safetensors", "lightning-fabric", "torchmetrics", "datasets", "jsonargparse")


def commit() -> dict[str, Any]:
    """Return the commit of the running auxin: ``{"commit": hash or "unknown", "dirty": bool or None}``.

    An installed copy has none, even where it lies inside somebody else's git repository. Files in folders called
    ``results`` do not make a checkout dirty: a run changes none of its code by leaving its own result there.
    """
    source = Path(__file__).resolve()
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return {"commit": "unknown", "dirty": None}
    code = (":(top)", ":(top,exclude,glob)**/results/**")
    status = _git(source.parent, "status", "--porcelain", "--untracked-files=all", "--", *code)
    return {"commit": _git(source.parent, "rev-parse", "HEAD") or "unknown", "dirty": bool(status)}


def session(from_epoch: int, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what trains a run from now on, as JSON data.

    Args:
        from_epoch: The first epoch of this session, counted from 1.
        changed: Settings that differ from those of the session before → before and after.

    Returns:
        ``from_epoch``, ``commit``, ``dirty``, ``hardware``, ``versions``, and ``changed`` where there is something.
    """
    made = {"from_epoch": from_epoch, **commit(), "hardware": hardware(), "versions": versions()}
    return {**made, "changed": dict(changed)} if changed else made


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """Return what ran: processor, cores, torch's threads, and the name of each GPU."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
