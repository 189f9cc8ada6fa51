"""Write the table.md and table.tex of every comparison again, from the results beside them.

What `auxin compare SPEC --recipe NAME --table-only --results results` writes, for all that are there.

Run: python experiments/tables.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from auxin.compare import gather, make_plan, make_tables, read_spec
from auxin.compare.formats import latex, markdown
from auxin.training.yaml_file import read_yaml

HERE = Path(__file__).parent


def kept(root: Path = HERE) -> Iterator[tuple[Path, Path, str | None]]:
    """Yield the folder of each comparison whose tables are kept, its specification and its recipe."""
    for path in sorted(root.glob("*/*.yaml")):
        document = read_yaml(path)
        if not isinstance(document, Mapping) or not {"rows", "grid"} & document.keys():
            continue  # the configuration of one run
        for recipe in map(str, document.get("recipes") or [""]):
            name = str(document.get("name", path.stem)) + (f"-{recipe}" if recipe else "")
            folder = path.parent / "results" / name
            if (folder / "table.md").exists():
                yield folder, path, recipe or None


def texts(path: Path, recipe: str | None) -> dict[str, str]:
    """Return the name and the text of each file of tables."""
    # Results name the place of their images, the specification a hub: that may differ.
    spec = replace(read_spec(path, recipe), moved=True)
    tables = make_tables(spec, gather(make_plan(spec, path.parent / "runs", path.parent / "results")))
    return {"table.md": markdown(tables), "table.tex": latex(tables)}


def main() -> None:
    """Write the tables."""
    for folder, path, recipe in kept():
        for name, text in texts(path, recipe).items():
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
