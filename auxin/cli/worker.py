"""One run in a process of its own: ``python -m auxin.cli.worker PARENT RUN [--any.field VALUE ...]``.

It is ``auxin resume``, with two guards. It ends when the process that started it is gone, so that killing a comparison
leaves nobody behind; and it holds a lock, so that two comparisons never write into the same run.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from pathlib import Path

from auxin.cli import main

_LOCK_SECONDS = 10.0
"""How long to wait for a run that a killed comparison has not let go yet."""


def end_with(parent: int) -> None:
    """End this process as soon as its parent is another one.

    Args:
        parent: Process id that started it.
    """
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)  # a checkpoint is whole at every moment, so there is nothing to tidy


def lock(run: Path, seconds: float = _LOCK_SECONDS) -> int | None:
    """Take the lock of a run; it is free again when this process ends, however it ends.

    Args:
        run: The run's folder.
        seconds: How long to wait for another holder.

    Returns:
        The open file, or None if somebody else keeps it.
    """
    descriptor = os.open(run / ".lock", os.O_CREAT | os.O_RDWR)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.2)
        else:
            return descriptor


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    if lock(Path(sys.argv[2])) is None:
        print(f"auxin: {sys.argv[2]} is being trained by another process.", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(["resume", *sys.argv[2:]]))
