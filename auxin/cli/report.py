"""``auxin report``: draw the page of a run."""

from __future__ import annotations

from collections.abc import Sequence

from auxin.cli.parser import CommandParser
from auxin.report import write_report

_DESCRIPTION = """Write RUN/report.html, one file that opens from disk and needs no network.

It shows headline numbers, the growth of every layer, loss and accuracy, the ladder and its Pareto front, how alike the
neurons were around each event, the events, Grad-CAM, and how the run was made. auxin train and auxin demo write it by
themselves; this command draws it again, for example for a run copied from another machine.

examples:
  auxin report runs/demo-1
  auxin report runs/vgg16-1 --data path/to/cifar10      the images have moved
  auxin report runs/a-1 runs/b-1 --no-cam
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin report``.

    Returns:
        Exit code 0.
    """
    parser = CommandParser("auxin report", _DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, finished or not")
    parser.add_argument("--data", metavar="SOURCE", help="where the images are; by default where the run had them")
    parser.add_argument("--no-cam", action="store_true", help="leave Grad-CAM out, which needs the images")
    options = parser.parse_args(arguments)
    for folder in options.runs:
        path = write_report(folder, source=options.data, gallery=not options.no_cam)
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB): open file://{path.resolve()}")
    return 0
