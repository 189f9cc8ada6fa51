import shutil
from pathlib import Path

import pytest

from auxin.cli import main


def test_report_redraws_the_page_from_images_that_have_moved(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(grown_run, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("source: digits", "source: /no/where"))
    assert main(["report", str(run), "--data", "digits"]) == 0
    assert f"{run}/report.html" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "<article>" in text
    assert main(["report", str(run), "--no-cam"]) == 0
    assert "auxin report run draws it" in (run / "report.html").read_text()


def test_what_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not the folder of a run" in error and error.count("\n") == 1
    assert main(["report"]) == 2
    assert "RUN" in capsys.readouterr().err


def test_demo_leaves_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--epochs", "1"]) == 0
    assert "report.html: open it in a browser" in capsys.readouterr().out
    text = (tmp_path / "runs/demo-1/report.html").read_text()
    assert "<article>" in text and "http-equiv" not in text


def damage_metrics(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0].replace('"epoch": 0', '"epoch": "one"'), *lines[1:]]))


def test_damaged_side_files_are_one_sentence_or_left_out(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(grown_run, tmp_path / "run")
    damage_metrics(run)
    (run / "similarity.json").write_text('{"events": [{}]}')
    assert main(["report", str(run), "--no-cam"]) == 0
    assert main(["similarity", str(run), "--event", "1"]) == 2
    assert "it has kept none" in capsys.readouterr().err
    (run / "result.json").write_text("{}")
    assert main(["report", str(run), "--no-cam"]) == 2
    error = capsys.readouterr().err
    assert "result.json is damaged" in error and error.count("\n") == 1
