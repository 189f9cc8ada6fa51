"""The command line: ``auxin COMMAND``, one file per command.

Nothing heavy is imported before a command is chosen, so that ``auxin --help`` answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from auxin.errors import AuxinError

COMMANDS = {
    "demo": "grow a small network on handwritten digits, in under a minute",
    "train": "train a growing network from a configuration file",
    "resume": "go on with a run that was interrupted",
    "compare": "train rows of settings with several seeds, and write their tables",
    "ladder": "show every size of a run, choose the best within a limit, or train them all on",
    "export": "write one size of a run as files that run without auxin",
    "report": "draw the page of a run: how it grew, what it learnt, where it looks",
    "cam": "show where one or two runs look in some images (Grad-CAM), in pictures and numbers",
    "similarity": "show how alike the neurons of a layer are, with and without the constraint",
    "inspect": "show what can grow in a model of yours, and why the rest cannot",
}
"""Command → what it does. Each is a module of this package with ``run(arguments) -> exit code``."""

_APP_MODULES = frozenset(
    {"PIL", "datasets", "jsonargparse", "lightning_fabric", "rich", "scipy", "sklearn", "tensorboard", "torchmetrics"}
    | {"captum", "jinja2", "markupsafe", "matplotlib", "yaml"}
)

_EXAMPLES = """examples:
  auxin demo
  auxin train experiments/vgg16.yaml --data path/to/cifar10
  auxin resume runs/vgg16-1
  auxin compare methods.yaml --jobs 2 --dry-run
  auxin ladder runs/vgg16-1 --max-params 60k
  auxin export runs/vgg16-1 --out vgg16-small --max-params 60k
  auxin inspect auxin.models:vgg16 --input 1,3,32,32

Run auxin COMMAND --help for the options of a command. AUXIN_DEBUG=1 shows where an error came from."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence on how to go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and turn every error into one sentence on stderr.

    Args:
        arguments: Command and its options; None takes those of the process.

    Returns:
        Exit code: 0 done, 2 an error, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without some letter is no reason to stop a training
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help"}:
        print(_usage())
        return 0 if words else 2
    before, threading.excepthook = threading.excepthook, _thread_failed
    show, warnings.showwarning = warnings.showwarning, _warn
    try:
        return _run(words[0], words[1:])
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted.", 130, error)
    except AuxinError as error:
        return _fail(str(error), 2, error)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _APP_MODULES:
            return _fail(f"{error}: install it and try again.", 2, error)
        return _fail(f'this command needs {error.name}: run pip install "auxin[app]".', 2, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}.", 2, error)
    except Exception as error:
        text = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {text} (AUXIN_DEBUG=1 shows where).", 2, error)
    finally:
        threading.excepthook, warnings.showwarning = before, show


def _run(command: str, arguments: list[str]) -> int:
    if command == "--version":
        print(importlib.import_module("importlib.metadata").version("auxin"))
        return 0
    if command not in COMMANDS:
        raise AuxinError(f"there is no command {command!r}: choose one of {', '.join(COMMANDS)}.")
    return int(importlib.import_module(f"auxin.cli.{command}").run(arguments))


def _usage() -> str:
    lines = "\n".join(f"  {name:<12}{summary}" for name, summary in COMMANDS.items())
    return (
        f"usage: auxin COMMAND [options]\n\nGrow neural networks while they train.\n\ncommands:\n{lines}\n\n{_EXAMPLES}"
    )


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread: its writer raises the same error again where the run ends."""
    if os.environ.get("AUXIN_DEBUG") == "1" or not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print a warning of auxin's own as one sentence, without the line of code that gives it."""
    if os.path.dirname(filename).startswith(os.path.dirname(os.path.dirname(__file__))):
        print(f"auxin: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def _fail(sentence: str, code: int, error: BaseException) -> int:
    if os.environ.get("AUXIN_DEBUG") == "1":
        raise error
    print(f"auxin: {' '.join(sentence.split())}", file=sys.stderr)
    return code
