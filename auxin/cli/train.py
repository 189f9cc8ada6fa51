"""``auxin train``: train a growing network from a configuration file."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from auxin.cli import Interrupted
from auxin.cli.timeline import show_result
from auxin.errors import ConfigError
from auxin.report import LivePage
from auxin.training import RunConfig, RunFolder, Trainer, load_config, make_parser
from auxin.training.allocator import keep_freed_memory
from auxin.training.lock import alone_in

_USAGE = "auxin train CONFIG [--data SOURCE] [--out FOLDER] [--any.field VALUE ...]"

_DESCRIPTION = """Train a network and grow it on the way, as a YAML file says.

The run folder (runs/NAME-1, NAME-2, ...) holds config.yaml, checkpoints, the ladder (one checkpoint per size), metrics
as CSV, JSON lines and TensorBoard, and at the end result.json. report.html shows it all and is kept up to date while
the training lasts. auxin resume goes on after any interruption.

examples:
  auxin train experiments/vgg16.yaml --data path/to/cifar10
  auxin train my.yaml --train.epochs 30 --growth.ratio 0.5 --growth.until "params<=325k"
  auxin train my.yaml --model.name my_models:make --model.kwargs.width 32
  auxin train --print_config > my.yaml        every setting with its default
"""

_EPILOG = "--data SOURCE is short for --data.source: digits, a Hugging Face hub name, or a local folder."


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin train``.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: If no configuration file is named.
    """
    words, parent = _take_out(list(arguments))
    parser = make_parser(
        usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = bool(words) and not words[0].startswith("-")
    if not named and not any(word.split("=")[0] in {"-h", "--help", "--print_config", "--config"} for word in words):
        raise ConfigError(
            "auxin train needs a configuration file first, such as auxin train my.yaml; "
            "auxin train --print_config > my.yaml makes one."
        )
    if named and not Path(words[0]).is_file():
        raise ConfigError(f"there is no configuration file {words[0]}: check the path.")
    config = load_config(with_source(["--config", *words] if named else words), parser)
    if config.name == RunConfig.name and named:
        config.name = _name_of(Path(words[0]))
    return train(config, RunFolder.make(config.name, parent), Console(soft_wrap=True))


def train(config: RunConfig, folder: RunFolder, console: Console) -> int:
    """Train in a run folder, new or begun, and print what came of it.

    Args:
        config: What to do.
        folder: Where.
        console: Where to print.

    Returns:
        Exit code 0.

    Raises:
        Interrupted: At Ctrl-C, or where the output is closed, with how to go on.
        KeyboardInterrupt: At Ctrl-C before there is anything to go on from.
        SystemExit: Where the output is closed before that.
    """
    keep_freed_memory()
    # Fabric announces its precision at every start.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    page = LivePage(lambda text: console.print(text, markup=False, highlight=False))
    try:
        with alone_in(folder.path):
            trainer = Trainer(config, folder, console=console, on_epoch=page)
            result = trainer.fit()
            page.finish(folder, trainer.data.to("cpu"))
    except KeyboardInterrupt as error:
        if not folder.config.exists():
            raise
        raise Interrupted(f"interrupted; go on with: auxin resume {shlex.quote(str(folder.path))}") from error
    except SystemExit as error:  # rich leaves so where nobody reads what it prints
        if not folder.config.exists():
            raise
        raise Interrupted(f"the output was closed; go on with: auxin resume {shlex.quote(str(folder.path))}") from error
    show_result(result, folder, console)
    return 0


def with_source(words: Sequence[str]) -> list[str]:
    """Spell ``--data SOURCE`` as the configuration does, ``--data.source SOURCE``.

    Args:
        words: Command-line arguments.

    Returns:
        The same, respelt.
    """
    spelled = ["--data.source" if word == "--data" else word for word in words]
    return ["--data.source=" + word.removeprefix("--data=") if word.startswith("--data=") else word for word in spelled]


def _name_of(file: Path) -> str:
    # It names a folder, which auxin resume must understand.
    return re.sub(r"[^\w.-]+", "-", file.stem).strip("-.") or RunConfig.name


def _take_out(words: list[str]) -> tuple[list[str], str]:
    # --out FOLDER says where the run goes, not what it is, so the configuration does not know it.
    for index, word in enumerate(words):
        if word.startswith("--out="):
            return words[:index] + words[index + 1 :], word.removeprefix("--out=")
        if word == "--out":
            if index + 1 == len(words):
                raise ConfigError("--out needs a folder, such as --out runs.")
            return words[:index] + words[index + 2 :], words[index + 1]
    return words, "runs"
