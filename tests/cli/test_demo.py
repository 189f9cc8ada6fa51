import json
from pathlib import Path

import pytest

from auxin.cli import main
from auxin.cli.demo import demo_config
from auxin.training import load_model, rungs


def test_demo_grows_and_ends_with_timeline_accuracies_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--epochs", "17"]) == 0
    text = capsys.readouterr().out
    assert "Growth timeline" in text
    assert "Accuracy per size" in text
    assert "Run folder: runs/demo-1" in text
    assert "\x1b" not in text
    result = json.loads((tmp_path / "runs/demo-1/result.json").read_text())
    assert [phase["last_epoch"] for phase in result["phases"]] == [8, 16, 17]
    for name, widths in result["widths"].items():
        row = next(line.split() for line in text.splitlines() if line.startswith(name))
        assert [int(cell) for cell in row[1:4]] == widths == [4, 6, 9]
    found = rungs(tmp_path / "runs/demo-1/ladder")
    assert [sum(p.numel() for p in load_model(rung.path).parameters()) for rung in found] == [
        phase["parameters"] for phase in result["phases"]
    ]
    assert main(["resume", "runs/demo-1"]) == 0
    assert "runs/demo-1 is finished" in capsys.readouterr().out
    assert main(["demo", "--epochs", "1"]) == 0
    assert (tmp_path / "runs/demo-2/result.json").exists()


def test_the_whole_demo_has_four_events() -> None:
    config = demo_config()
    assert config.train.epochs == 5 * config.growth.every
    assert config.growth.times == 4


def test_settings_given_to_resume_replace_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--epochs", "2"]) == 0
    (tmp_path / "runs/demo-1/result.json").unlink()
    assert main(["resume", "runs/demo-1", "--train.epochs", "3", "--optimizer.lr", "0.01"]) == 0
    result = json.loads((tmp_path / "runs/demo-1/result.json").read_text())
    assert result["config"]["train"]["epochs"] == 3
    assert result["config"]["optimizer"]["lr"] == 0.01
    assert main(["resume", "runs/demo-1", "--model.kwargs.width", "9"]) == 2
    assert "runs/demo-1 is finished, so settings come too late" in capsys.readouterr().err
    assert main(["resume", "runs/demo-1", "--optimizer.rate", "9"]) == 2
    assert "no setting --optimizer.rate" in capsys.readouterr().err
    assert main(["resume", "runs/demo-1", "--optimizer.lr", "0.01"]) == 0  # it has that already
    capsys.readouterr()
    (tmp_path / "runs/demo-1/result.json").unlink()
    assert main(["resume", "runs/demo-1", "--model.kwargs.width", "9"]) == 2
    assert "keeps its model" in capsys.readouterr().err
