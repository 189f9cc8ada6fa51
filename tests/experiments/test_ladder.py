import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from auxin.training import Phase, Result

SCRIPT = Path(__file__).parents[2] / "experiments" / "secnn2024" / "ladder.py"


@pytest.fixture(scope="module")
def ladder() -> ModuleType:
    specification = importlib.util.spec_from_file_location("secnn_ladder", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def save(folder: Path, row: str, seed: int, *phases: Phase) -> None:
    result = Result(
        name=row, config={}, commit="0", dirty=False, seed=seed, hardware={}, versions={}, data={},
        phases=list(phases), events=[], widths={}, seconds=1.0,
        cost={"training": 990, "validation": 0, "scoring": 10, "surgery": 0},
    )  # fmt: skip
    result.save(folder / f"{row}-s{seed}.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, gain in ((0, 0.0), (1, 0.02)):
        small = Phase(1, 2, 1000, 20, 0.6, 0.5, 1.0, training_flops=400)
        last = Phase(3, 10, 3000, 40, 0.75, 0.7 + gain, 1.0, training_flops=3600)
        save(tmp_path, "natural-expansion", seed, small, last)
    save(tmp_path, "fixed-size-of-rung-1", 0, Phase(1, 10, 1010, 20, 0.6, 0.55, 1.0, training_flops=2000))
    for seed in (0, 1):
        save(tmp_path, "fixed-same-epochs", seed, Phase(1, 10, 3000, 40, 0.7, 0.71, 1.0, training_flops=4000))
    return tmp_path


def test_sizes_are_paired_by_seed_and_costs_counted(ladder: ModuleType, folder: Path) -> None:
    text = ladder.page(folder)
    assert "| parameters at 70 % validation | 9,024 to 13,696 | 3,000, 3,000 |" in text
    assert "| parameters at 80 % validation | 22,636 to 51,880 | not reached, not reached |" in text
    assert "| share of scoring in all FLOPs, % | - | 1.00, 1.00 |" in text
    assert "| rung 1 | 1 | 1,000 | 1,010 | 2 | 10 | 50.00 | 55.00 | -5.00 |" in text
    assert "| last, same epochs | 2 |" in text
    assert "| 71.00 ± 1.41 | 71.00 ± 0.00 | 0.00 ± 1.41 |" in text
    assert "| rung 3 | 0 | - |" in text
    # 20 and 40 FLOPs an image, 10 epochs, 10 FLOPs an epoch for each: 6,000 against 3,600.
    assert "| ratio | 2 | 1.67 ± 0.00 |" in text


def test_the_page_is_checked_and_written(ladder: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ladder.py", str(folder), "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        ladder.main()
    monkeypatch.setattr(sys, "argv", ["ladder.py", str(folder)])
    ladder.main()
    monkeypatch.setattr(sys, "argv", ["ladder.py", str(folder), "--check"])
    ladder.main()


def test_without_results_it_says_what_to_run(ladder: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run auxin compare"):
        ladder.page(tmp_path)


def test_the_page_in_the_repository_is_up_to_date(ladder: ModuleType) -> None:
    assert (ladder.HERE / "ladder.md").read_text(encoding="utf-8") == ladder.page(ladder.HERE)
