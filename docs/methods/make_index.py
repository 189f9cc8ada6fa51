"""Write README.md of this folder, the index of the growth methods, from the table ``auxin.METHODS``.

Run: python docs/methods/make_index.py             (reads the table, and the titles of the other pages)
     python docs/methods/make_index.py --check     (change nothing; exit code 1 if the index is not up to date)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

import auxin
from auxin.budgets import Allocated
from auxin.errors import ConfigError
from auxin.types import Method

HERE = Path(__file__).parent
HEAD = """# Growth methods

Written by `python docs/methods/make_index.py` from `auxin.METHODS`; do not edit. Whether the function is preserved is
what the method promises with its default options; whether it needs data is found by proposing without any.

| method | what new neurons are | function preserved | needs data |
| --- | --- | --- | --- |
"""


def needs_data(method: Method) -> bool:
    """Return whether a method refuses to plan without batches and a loss."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    graph = auxin.trace(model, torch.zeros(2, 4))
    try:
        method.propose(model, graph, Allocated({"0": 1}), generator=torch.Generator().manual_seed(0))
    except ConfigError:
        return True
    return False


def summary(method: Method) -> str:
    """Return the first line of the docstring of a method's class."""
    return (type(method).__doc__ or "").strip().partition("\n")[0]


def title(page: Path) -> str:
    """Return the heading of a page."""
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def index() -> str:
    """Return the text of the index."""
    lines = []
    for name, method in auxin.METHODS.items():
        answers = ("yes" if method.preserves else "no", "yes" if needs_data(method) else "no")
        lines.append(f"| [`{name}`]({name}.md) | {summary(method)} | {answers[0]} | {answers[1]} |")
    others = [page for page in sorted(HERE.glob("*.md")) if page.stem not in {*auxin.METHODS, "README"}]
    lines += ["", "Beside the methods:", "", *(f"- [{title(page)}]({page.name})" for page in others)]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Run the command.

    Returns:
        Its exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if it is not up to date")
    options = parser.parse_args()
    readme = HERE / "README.md"
    text = index()
    if options.check:
        return int(not readme.exists() or readme.read_text(encoding="utf-8") != text)
    readme.write_text(text, encoding="utf-8")
    print(readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
