"""One run in a process of its own: ``python -m auxin.cli.worker PARENT RUN [--any.field VALUE ...]``.

It is ``auxin resume``, which ends when the process that started it is gone, so that killing a comparison leaves nobody
behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from auxin.cli import main


def end_with(parent: int) -> None:
    """End this process as soon as its parent is another one.

    Args:
        parent: Process id that started it.
    """
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)  # a checkpoint is whole at every moment, so there is nothing to tidy


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    sys.exit(main(["resume", *sys.argv[2:]]))
