"""The tables that are kept beside results say what these results say."""

import importlib.util
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
specification = importlib.util.spec_from_file_location("experiments_tables", EXPERIMENTS / "tables.py")
assert specification and specification.loader
tables = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tables)
KEPT = {folder: (path, recipe) for folder, path, recipe in tables.kept()}


def test_every_folder_with_a_table_has_its_specification() -> None:
    assert set(KEPT) == {path.parent for path in EXPERIMENTS.glob("*/results/*/table.*")} != set()


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_kept_tables_are_up_to_date(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # To parse the configuration of every result takes longer than all else, and test_readme does it.
    monkeypatch.setattr("auxin.compare.plan.check", lambda run: None)
    for name, text in tables.texts(*KEPT[folder]).items():
        kept = (folder / name).read_text(encoding="utf-8")
        assert kept == text, f"{folder / name} is out of date: run python experiments/tables.py"
