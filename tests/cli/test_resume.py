"""What ``auxin resume`` refuses, and what it goes on with."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from auxin.cli import main
from auxin.training import Result, lock
from auxin.training.lock import alone_in


@pytest.fixture
def begun(grown_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed while its test images were evaluated."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(grown_run, tmp_path / "run")
    (run / "result.json").unlink()
    return run


def test_two_processes_never_train_in_one_folder(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with alone_in(begun):
        assert main(["resume", "run"]) == 2
    assert capsys.readouterr().err.startswith("auxin: run is being trained by another process: wait")
    assert {path: path.read_bytes() for path in before} == before
    assert main(["resume", "run"]) == 0


def test_two_processes_never_finish_one_rung(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    with alone_in(begun / "finished" / "rung-00"):
        assert main(["ladder", "run", "--finish", "1"]) == 2
        assert "rung-00 is being trained by another process" in capsys.readouterr().err
        assert (begun / "finished" / "rung-00" / lock.NAME).exists()
    assert not (begun / "finished" / "rung-00").exists()


def test_a_lock_that_is_released_in_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(tmp_path / lock.NAME, os.O_CREAT | os.O_RDWR)
    lock.fcntl.flock(descriptor, lock.fcntl.LOCK_EX)
    waits = []

    def release(seconds: float) -> None:
        waits.append(seconds)
        lock.fcntl.flock(descriptor, lock.fcntl.LOCK_UN)

    monkeypatch.setattr(lock.time, "sleep", release)
    with alone_in(tmp_path):
        assert len(waits) == 1
        with pytest.raises(BlockingIOError):
            lock.fcntl.flock(descriptor, lock.fcntl.LOCK_EX | lock.fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_truncated_configuration_does_not_matter_where_there_is_a_checkpoint(begun: Path) -> None:
    expected = yaml.safe_load((begun / "config.yaml").read_text())
    os.truncate(begun / "config.yaml", 150)
    assert main(["resume", "run"]) == 0
    assert yaml.safe_load((begun / "config.yaml").read_text()) == expected
    assert Result.read(begun / "result.json").config["train"] == expected["train"]


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\xff", b"train: [", b"[1]", b"name: a\n"])
def test_a_damaged_configuration_is_one_sentence(begun: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    shutil.rmtree(begun / "checkpoints")
    (begun / "config.yaml").write_bytes(data)
    for words in (["resume", "run"], ["report", "run", "--no-cam"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "config.yaml" in error and "unexpected" not in error and error.count("\n") == 1


def test_a_truncated_result_says_how_to_write_it_again(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (begun / "result.json").write_text('{"name": "r')
    assert main(["resume", "run"]) == 2
    assert "remove it and run auxin resume" in capsys.readouterr().err
    (begun / "result.json").unlink()
    assert main(["resume", "run"]) == 0


def test_checkpoints_that_are_gone(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(begun / "checkpoints")
    assert main(["resume", "run"]) == 2
    assert "restore the folder of checkpoints" in capsys.readouterr().err
