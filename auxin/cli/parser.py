"""The argument parser of small commands: an error is one sentence, not a page of usage."""

from __future__ import annotations

import argparse
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
