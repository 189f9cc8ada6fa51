"""``auxin resume``: go on with a run that was interrupted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from auxin.cli.timeline import show_result
from auxin.cli.train import train, with_source
from auxin.errors import ConfigError
from auxin.training import Result, RunFolder, load_config, make_parser
from auxin.training.begun import config_of

_USAGE = "auxin resume RUN [--data SOURCE] [--any.field VALUE ...]"

_DESCRIPTION = """Go on with a run from its last checkpoint; after Ctrl-C, a crash or kill -9.

With train.deterministic the final weights are bit-equal to those of a run that was never interrupted. Settings given
here replace those of the run from now on; the model and the split of the images stay as they are.

examples:
  auxin resume runs/vgg16-1
  auxin resume runs/vgg16-1 --optimizer.lr 0.05        the loss was no longer finite
  auxin resume runs/vgg16-1 --data path/to/cifar10     the images have moved
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin resume``.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: If there is no such run, or it is finished and there are settings.
    """
    words = list(arguments)
    if not words or words[0].startswith("-"):
        if any(word in {"-h", "--help"} for word in words):
            load_config(
                ["--help"],
                make_parser(
                    "auxin resume",
                    usage=_USAGE,
                    description=_DESCRIPTION,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                ),
            )
        raise ConfigError("auxin resume needs the folder of a run first, such as auxin resume runs/demo-1.")
    folder = RunFolder(Path(words[0]))
    if not folder.config.is_file():
        raise ConfigError(f"{folder.path} is not the folder of a run: it has no config.yaml.")
    console, settings = Console(soft_wrap=True), with_source(words[1:])
    if not folder.result.exists():
        return train(config_of(folder, settings), folder, console)
    result = Result.read(folder.result)
    if settings and config_of(folder, settings) != config_of(folder):
        raise ConfigError(
            f"{folder.path} is finished, so settings come too late: auxin train {folder.config} takes them."
        )
    console.print(f"{folder.path} is finished.", highlight=False)
    show_result(result, folder, console)
    return 0
