import csv
import shutil
from pathlib import Path

import pytest

from auxin.cli import main


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_before_and_after_refinement_of_one_run(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.svg"
    assert main(["similarity", str(grown_run), "--layer", "features.4", "--event", "1", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert [line.split("  ")[0] for line in text.splitlines()[:3]] == [
        "before growth", "after growth", "after refinement",
    ]  # fmt: skip
    assert "of layer features.4" in out.read_text()
    rows = rows_of(out.with_suffix(".csv"))
    pairs = [sum(int(row[f"{stage} pairs"]) for row in rows) for stage in ("before growth", "after refinement")]
    assert pairs == [4 * 3 // 2, 6 * 5 // 2]
    assert sum(float(row["after growth share"]) for row in rows) == pytest.approx(1, abs=1e-4)


def test_two_runs_side_by_side(grown_run: Path, fixed_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.png"
    assert main(["similarity", str(grown_run), str(fixed_run), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    rows = rows_of(out.with_suffix(".csv"))
    assert sum(int(row["grown-1 pairs"]) for row in rows) == 3 * (9 * 8 // 2)
    assert sum(int(row["fixed-1 pairs"]) for row in rows) == 3 * (4 * 3 // 2)


def test_a_run_without_events_shows_its_model(fixed_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.png"
    assert main(["similarity", str(fixed_run), "--layer", "classifier", "--out", str(out)]) == 0
    assert sum(int(row["fixed-1 pairs"]) for row in rows_of(out.with_suffix(".csv"))) == 45


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--layer", "features.3"], "no layer 'features.3' to compare; there are: features.0, features.4, features.7"),
        (["--rung", "0", "--layer", "nope"], "no layer 'nope' with neurons to compare"),
        (["--event", "3"], "no growth event 3 to show: it has 1, 2"),
        (["--event", "0"], "no growth event 0 to show: it has 1, 2"),
        (["--event", "1", "--rung", "0"], "no --rung"),
        (["--rung", "9"], "has no rung 9"),
        (["--out", "x.doc"], "is not a picture"),
    ],
)
def test_wrong_input_is_one_sentence(
    grown_run: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["similarity", str(grown_run), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_run_without_checkpoints_is_one_sentence(
    grown_run: Path, fixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = shutil.copytree(fixed_run, tmp_path / "bare", ignore=shutil.ignore_patterns("ladder", "checkpoints"))
    assert main(["similarity", str(bare)]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
    assert main(["similarity", str(grown_run), str(fixed_run), "--event", "1"]) == 2
    assert "one run's growth" in capsys.readouterr().err


def test_what_a_run_wrote_is_not_replaced(grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(grown_run, tmp_path / "run")
    before = (run / "metrics.csv").read_bytes()
    assert main(["similarity", str(run), "--out", str(run / "metrics.png")]) == 2
    assert f"would replace {run}/metrics.csv: give another name" in capsys.readouterr().err
    assert (run / "metrics.csv").read_bytes() == before and not (run / "metrics.png").exists()
