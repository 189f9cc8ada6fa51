"""``auxin export``: a rung as files that run without auxin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auxin.cli.ladder import add_selectors, report_damage, wish_of
from auxin.cli.parser import CommandParser
from auxin.training import RunFolder
from auxin.training.export import export_model
from auxin.training.selection import choices, select

_DESCRIPTION = """Write one size of a run as a folder that runs without auxin.

model.pt2 is a torch.export program, model.safetensors its weights, model.json the classes, the preprocessing, sizes and
accuracy, and README.md how to load them. Without a choice it is the rung of highest validation accuracy.

examples:
  auxin export runs/vgg16-1 --out vgg16-small --max-params 60k
  auxin export runs/vgg16-1 --out vgg16 --rung 4
  auxin export runs/vgg16-1 --out vgg16 --min-accuracy 0.75 --force
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin export``.

    Returns:
        Exit code 0.
    """
    parser = CommandParser("auxin export", _DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    add_selectors(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace an earlier export there")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    chosen = select(choices(folder, report_damage), wish_of(options))
    out = export_model(folder, chosen, options.out, options.force)
    print(f"{out}: rung {chosen.name}, {chosen.parameters:,} parameters, validation {chosen.val_accuracy:.2%}")
    return 0
