"""Where in the user's own code something happens: the line at which an error arose, and the line that runs now."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from pathlib import Path

import torch

_PACKAGE = f"{Path(__file__).resolve().parent.parent}{os.sep}"
_TORCH = f"{Path(torch.__file__).resolve().parent}{os.sep}"


def _is_own(filename: str) -> bool:
    return not filename.startswith((_TORCH, _PACKAGE, "<"))


def own_line(error: BaseException) -> str:
    """Return the innermost line of an error that is neither torch's nor auxin's, as ``file:line: code``; or nothing."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return _written(own[-1]) if own else ""


def resisting_line(error: BaseException) -> str:
    """Return the innermost line of an error that is the user's own, or else torch's, as ``file:line: code``."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(_PACKAGE)] or list(frames)
    return own_line(error) or (_written(outside[-1]) if outside else "")


def _written(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}: {frame.line}"


def running_line() -> str:
    """Return the line of the user's own code that runs now, as ``file:line: code``; empty if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if _is_own(name):
            return f"{name}:{frame.f_lineno}: {linecache.getline(name, frame.f_lineno).strip()}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
