import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from auxin.training import Phase, Result

SCRIPT = Path(__file__).parents[2] / "experiments" / "secnn2024" / "tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    specification = importlib.util.spec_from_file_location("secnn_tables", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def save(folder: Path, row: str, seed: int, *phases: Phase) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    result = Result(
        name=row, config={}, commit="0", dirty=False, seed=seed, hardware={}, versions={}, data={},
        phases=list(phases), events=[], widths={}, seconds=1.0,
        cost={"training": 990, "validation": 0, "scoring": 10, "surgery": 0},
    )  # fmt: skip
    result.save(folder / (f"{row}.json" if "rung-0" in row else f"{row}-s{seed}.json"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "secnn"
    for seed, gain in ((0, 0.0), (1, 0.02)):
        small = Phase(1, 2, 1000, 20, 0.6, 0.5, 1.0, training_flops=400)
        last = Phase(3, 10, 3000, 40, 0.75, 0.7 + gain, 1.0, training_flops=3600)
        save(folder, "natural-expansion", seed, small, last)
    save(folder, "fixed-size-of-rung-1", 0, Phase(1, 10, 1010, 20, 0.6, 0.55, 1.0, training_flops=2000))
    for seed in (0, 1):
        save(folder, "fixed-same-epochs", seed, Phase(1, 10, 3000, 40, 0.7, 0.71, 1.0, training_flops=4000))
    save(folder, "finished-s0-rung-0", 0, Phase(1, 5, 1000, 20, 0.66, 0.65, 1.0, training_flops=2 * 10**12))
    return tmp_path / "results"


def test_sizes_are_paired_by_seed_and_costs_counted(tables: ModuleType, results: Path) -> None:
    text = tables.tables(results)
    assert "|  | paper | table.yaml |\n" in text
    assert "| parameters at 70 % validation | 9,024 to 13,696 | 3,000, 3,000 |" in text
    assert "| parameters at 80 % validation | 22,636 to 51,880 | not reached, not reached |" in text
    assert "| scoring, % of all FLOPs | - | 1.00, 1.00 |" in text
    assert "| rung 1 | 1 | 1,000 | 1,010 | 2 | 10 | 50.00 | 55.00 | -5.00 |" in text
    assert "| last, same epochs | 2 | 3,000 | 3,000 | 10 | 10 | 71.00 ± 1.41 | 71.00 | 0.00 ± 1.41 |" in text
    assert "| rung 3 | 0 | - |" in text
    # 20 and 40 FLOPs an image, 10 epochs, 10 FLOPs an epoch for each: 6,000 against 3,600.
    assert "| ratio | 2 | 1.67 |" in text
    assert "| 0 | 1,000 | 50.00 | 65.00 | 5 | 2.0 |" in text


def test_a_longer_run_has_a_column_of_its_own(tables: ModuleType, results: Path) -> None:
    last = Phase(1, 99, 3000, 40, 0.82, 0.81, 1.0, training_flops=10**12, energy_kwh=0.03)
    save(results / "secnn-long", "natural-expansion", 0, last)
    text = tables.tables(results)
    assert "|  | paper | table.yaml | long.yaml |" in text
    assert "| Wh, modelled | - | -, - | 30.0 |" in text


def test_only_the_tables_of_the_readme_are_replaced(
    tables: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = results.parent / "README.md"
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["tables.py", str(results.parent), "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py", str(results.parent)])
    tables.main()
    assert readme.read_text().startswith(f"before\n{tables.BEGIN}\nGrown runs")
    assert readme.read_text().endswith(f"\n{tables.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["tables.py", str(results.parent), "--check"])
    tables.main()


def test_what_is_missing_is_said(tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run auxin compare"):
        tables.tables(tmp_path)
    with pytest.raises(SystemExit, match="no place for the tables"):
        tables.replaced("nothing here", "block")


def test_the_readme_in_the_repository_is_up_to_date(tables: ModuleType) -> None:
    text = (tables.HERE / "README.md").read_text(encoding="utf-8")
    assert tables.replaced(text, tables.tables(tables.HERE / "results")) == text
