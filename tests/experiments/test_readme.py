import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from auxin.training import Phase, Result, RunConfig

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "readme.py"
MARK = '<!-- table: sub/t.yaml --recipe short --columns "n,test %,published" --absent "not run" -->'


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    specification = importlib.util.spec_from_file_location("experiments_readme", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = {
        "name": "t",
        "recipes": {"short": {"train.epochs": 2}},
        "seeds": 2,
        "rows": [
            {"label": "A", "config": {"growth.method": None}},
            {"label": "B", "config": {"growth.method": "gradmax"}, "baseline": "A"},
            {"label": "C", "config": {"growth.method": "random"}},
        ],
        "published": {"A": {"test": 90.0}},
        "metrics": ["test", "best_test", "val"],
    }
    (tmp_path / "sub" / "results" / "t-short").mkdir(parents=True)
    (tmp_path / "sub" / "t.yaml").write_text(yaml.safe_dump(spec))
    for row, method, seed, test in (("a", None, 0, 0.5), ("a", None, 1, 0.7), ("b", "gradmax", 1, 0.72)):
        config = RunConfig.from_dict(
            {"name": f"{row}-s{seed}", "train": {"epochs": 2, "seed": seed}, "growth": {"method": method}}
        )
        Result(
            name=config.name, config=config.to_dict(), commit="0", dirty=False, seed=seed, hardware={}, versions={},
            data={}, phases=[Phase(1, 2, 10, 20, 0.6, test, 1.0)], events=[], widths={}, seconds=1.0,
        ).save(tmp_path / "sub" / "results" / "t-short" / f"{config.name}.json")  # fmt: skip
    return tmp_path


def run(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["readme.py", *arguments])
    readme.main()


def test_tables_come_from_the_results_and_other_text_stays(
    readme: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder / "README.md"
    differences = "<!-- table: sub/t.yaml --recipe short --part differences --only B -->"
    page.write_text(
        f"before\n{MARK}\nold\n<!-- end of table -->\nbetween\n{differences}\n<!-- end of table -->\nafter\n"
    )
    run(readme, monkeypatch, str(page))
    text = page.read_text()
    assert text.startswith(f"before\n{MARK}\n|  | n | test % | published |\n")
    assert "| A | 2 | 60.00 ± 14.14 | 90.0 |\n| B | 1 of 2 | 72.00 | - |\n| C | not run | - | - |\n" in text
    assert "| B - A | 1 | +2.00 |" in text and "old" not in text and text.endswith("after\n") and "between" in text
    run(readme, monkeypatch, str(page), "--check")
    page.write_text(text.replace("72.00 |", "73.00 |"))
    with pytest.raises(SystemExit, match="out of date"):
        run(readme, monkeypatch, str(page), "--check")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no mark", "has no table"),
        ("<!-- table: sub/t.yaml --recipe short --columns speed -->\n<!-- end of table -->", "no column 'speed'"),
    ],
)
def test_mistakes_are_named(
    readme: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (folder / "README.md").write_text(text)
    with pytest.raises(SystemExit, match=words):
        run(readme, monkeypatch, str(folder / "README.md"))


@pytest.mark.parametrize(
    "page", ["README.md", *(f"experiments/{name}/README.md" for name in ("sakai2024", "equal_flops", "methods"))]
)
def test_our_own_tables_are_up_to_date(readme: ModuleType, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    run(readme, monkeypatch, str(ROOT / page), "--check")
