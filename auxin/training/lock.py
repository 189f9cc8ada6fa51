"""The lock of a run: two processes never train in one folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from auxin.errors import TrainingError

if sys.platform != "win32":
    import fcntl

NAME = ".lock"
"""The file that is locked. It stays, since removing it would let two processes lock two files of that name."""

PATIENCE = 10.0
"""Seconds to wait for a process that is about to end, such as one of a killed comparison."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep all other processes from training in a folder; a killed process keeps nobody.

    Args:
        folder: Of the run; made where absent, and removed at the end if the run has never begun.

    Yields:
        None, with the lock held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / NAME, os.O_CREAT | os.O_RDWR)
    try:
        _take(descriptor, folder)
        try:
            yield
        finally:
            _remove_unused(folder)
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        return
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"{folder} is being trained by another process: wait until that one ends, or stop it."
                ) from error
            time.sleep(0.2)
        except OSError:
            return  # some file systems have no locks
        else:
            return


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):
        if os.listdir(folder) == [NAME]:
            (folder / NAME).unlink()
            folder.rmdir()
