"""The argument parser of small commands: an error is one sentence, not a page of usage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from auxin.errors import ConfigError


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that keeps the description's layout and raises its errors.

    Args:
        prog: The command, such as ``auxin demo``.
        description: What ``--help`` teaches, with examples.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Raise a usage error.

        Args:
            message: What argparse found.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{message}; see {self.prog} --help.")


def picture_path(given: str | None, default: Path) -> Path:
    """Return where a picture goes.

    Args:
        given: What the user said, or None.
        default: Where it goes otherwise.

    Returns:
        The path; its folder exists.

    Raises:
        ConfigError: If the suffix is not one of a picture, or there is no such folder.
    """
    path = default if given is None else Path(given)
    if path.suffix not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"--out {path} is not a picture: give a name that ends in .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path} lies in a folder that does not exist: make {path.parent} first.")
    return path
