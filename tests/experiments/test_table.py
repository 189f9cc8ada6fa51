import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from auxin.training import Phase, Result

SCRIPT = Path(__file__).parents[2] / "experiments" / "table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    specification = importlib.util.spec_from_file_location("experiments_table", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def make_result() -> Result:
    return Result(
        name="x",
        config={},
        commit="0123456789abcdef",
        dirty=True,
        seed=3,
        hardware={"processor": "Processor", "threads": 2},
        versions={"torch": "2.13.0"},
        data={},
        phases=[
            Phase(1, 4, 1000, 2_500_000, 0.5, 0.4567, 12.4),
            Phase(5, 8, 2000, 5_000_000, 0.75, None, 20.0),
        ],
        events=[],
        widths={},
        seconds=32.4,
    )


def test_one_row_per_size(table: ModuleType) -> None:
    text = table.markdown({"vgg": make_result()})
    lines = text.splitlines()
    assert lines[2] == "| vgg | 1-4 | 1,000 | 2.50 | 50.00 | 45.67 | 12 | 3 | 012345678 (changed) |"
    assert lines[3] == "|  | 5-8 | 2,000 | 5.00 | 75.00 |  | 20 |  |  |"
    assert lines[-1] == "Made on: Processor, 2 threads, torch 2.13.0."


def test_the_table_replaces_itself_and_nothing_else(table: ModuleType) -> None:
    once = table.replace_table("# Title\n\ntext\n", "old")
    assert once.startswith("# Title\n\ntext\n")
    twice = table.replace_table(once + "after\n", "new")
    assert "old" not in twice
    assert twice.endswith("after\n")
    assert twice.count("new") == 1


def test_the_command_reads_results_and_checks(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    make_result().save(tmp_path / "results" / "vgg.json")
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path), "--check"])
    assert table.main() == 1
    assert not (tmp_path / "README.md").exists()
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path)])
    assert table.main() == 0
    assert "| vgg |" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path), "--check"])
    assert table.main() == 0
