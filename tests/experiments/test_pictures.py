import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "sakai2024" / "pictures.py"


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    specification = importlib.util.spec_from_file_location("sakai_pictures", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def entry(method: str, seed: int, share: float, gain: float, recipe: str = "short") -> dict[str, Any]:
    without = {"share": share, "entropy": 0.9, "area": 0.25, "insertion": 0.5, "deletion": 0.2}
    return {
        "recipe": recipe,
        "method": method,
        "seed": seed,
        "images": 500,
        "without": without,
        "with": {**without, "share": share + gain},
    }


def test_differences_are_paired_by_seed(pictures: ModuleType) -> None:
    full = entry("SSD", 0, 0.80, 0.01, "full")
    text = pictures.table([
        full, entry("SSD", 0, 0.90, 0.02), entry("SSD", 1, 0.94, 0.04), entry("Random", 0, 0.99, 0.0)
    ])  # fmt: skip
    lines = text.splitlines()
    assert lines[2].startswith("| Random, short | 1 | pairs in [-0.5, 0.5], % | 99.00 | 99.00 | +0.00 |")
    assert "| SSD, short | 2 | pairs in [-0.5, 0.5], % | 92.00 ± 2.83 | 95.00 ± 4.24 | +3.00 ± 1.41 |" in lines
    assert "| SSD, full | 1 | pairs in [-0.5, 0.5], % | 80.00 | 81.00 | +1.00 |" in lines
    assert "|  |  | Grad-CAM entropy | 0.900 ± 0.000 | 0.900 ± 0.000 | +0.000 ± 0.000 |" in lines
    assert not any("Firefly" in line for line in lines) and lines[-1].endswith("500 test images.")


def test_the_table_in_the_readme_is_up_to_date(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--check"])
    pictures.main()


def test_shares_of_alike_pairs_are_averaged_over_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SCRIPT.with_name("duplicates.py")
    specification = importlib.util.spec_from_file_location("sakai_duplicates", script)
    assert specification and specification.loader
    duplicates = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(duplicates)
    inside, outside = [0] * 40, [0] * 40
    inside[20], outside[39] = 4, 4
    alike = [a + b for a, b in zip(inside, outside, strict=True)]
    layers = {name: {"before_growth": inside, "after_growth": alike, "after_refinement": None} for name in "ab"}
    layers["b"] = {**layers["b"], "after_growth": inside}
    assert duplicates.shares({"event": 1, "epoch": 2, "layers": layers}) == pytest.approx([0, 0.25, None])
    text = duplicates.table([{"row": "ssd", "seed": 0, "events": [[0.0, 0.25, None]]}])
    assert "| ssd | 1 | 1 | 0.00 | 25.00 | - |" in text
    monkeypatch.setattr(sys, "argv", ["duplicates.py", "--check"])
    duplicates.main()


def test_a_missing_folder_is_one_sentence(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pictures.py", "nowhere"])
    with pytest.raises(SystemExit, match="no folder nowhere"):
        pictures.main()


def test_runs_of_another_machine_are_kept(pictures: ModuleType) -> None:
    kept = [entry("SSD", 0, 0.90, 0.02), entry("Random", 1, 0.99, 0.0)]
    merged = pictures.merge(kept, [entry("SSD", 1, 0.94, 0.04), entry("SSD", 0, 0.91, 0.02)])
    assert [(each["method"], each["seed"]) for each in merged] == [("Random", 1), ("SSD", 0), ("SSD", 1)]
    assert merged[1]["without"]["share"] == 0.91
