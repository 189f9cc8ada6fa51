"""The page of a training while it lasts: rewritten after each epoch, as long as that costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from auxin.data import ImageData
from auxin.report.page import write_report
from auxin.training.folder import RunFolder

SHARE = 0.05
"""Largest share of a run's time that its page may take; very short epochs share one rewriting."""


class LivePage:
    """Rewrites a run's page; made to be a Trainer's ``on_epoch``.

    A page that cannot be drawn is no reason to stop a training: the first failure is told in one line and ends the
    drawing.

    Args:
        tell: Prints a line.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._next = 0.0
        self._broken = False

    def __call__(self, folder: RunFolder) -> None:
        """Rewrite the page, unless the last time was too recent.

        Args:
            folder: Of the run.
        """
        started = time.perf_counter()
        if self._broken or started < self._next:
            return
        self._draw(folder, None, gallery=False)
        now = time.perf_counter()
        self._next = now + (now - started) * (1 / SHARE - 1)

    def finish(self, folder: RunFolder, data: ImageData | None = None) -> None:
        """Write the whole page of a finished run, Grad-CAM included.

        Args:
            folder: Of the run.
            data: Its images.
        """
        # Also after a failure on the way: a finished run may well be drawn.
        self._draw(folder, data, gallery=True)

    def _draw(self, folder: RunFolder, data: ImageData | None, gallery: bool) -> None:
        try:
            write_report(folder.path, data=data, gallery=gallery)
        except Exception as error:
            self._broken = True
            text = " ".join(str(error).split())
            self._tell(
                f"the page {folder.report} could not be drawn ({type(error).__name__}: {text}); training goes on."
            )
