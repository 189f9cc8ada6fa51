"""What ``auxin resume`` refuses, and what it goes on with."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from auxin.cli import main
from auxin.training import Result, RunConfig, Trainer, lock
from auxin.training import checkpoint as checkpoints
from auxin.training.lock import alone_in
from tests.training.test_trainer import QUIET


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


def test_a_damaged_rung_is_left_out_of_a_run_that_ends_and_every_number_stays_with_its_size(
    begun: Path, grown_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Result.read(grown_run / "result.json")
    (first,) = (begun / "ladder").glob("rung-00-*.safetensors")
    os.truncate(first, 1000)
    assert main(["resume", "run"]) == 0
    assert "A rung is left out." in capsys.readouterr().out
    result = Result.read(begun / "result.json")
    assert [phase.parameters for phase in result.phases] == [phase.parameters for phase in whole.phases[1:]]
    assert [phase.test_accuracy for phase in result.phases] == [phase.test_accuracy for phase in whole.phases[1:]]
    assert [phase.first_epoch for phase in result.phases] == [phase.first_epoch for phase in whole.phases[1:]]
    assert result.widths == {name: sizes[1:] for name, sizes in whole.widths.items()}
    assert main(["ladder", "run", "--json"]) == 0
    rungs = json.loads(capsys.readouterr().out)["rungs"]
    shown = {rung["parameters"]: rung["test_accuracy"] for rung in rungs}
    assert shown == {phase.parameters: phase.test_accuracy for phase in whole.phases[1:]}


def test_missing_rungs_are_said_and_the_time_of_a_size_is_its_own(
    begun: Path, grown_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Result.read(grown_run / "result.json")
    for path in (begun / "ladder").glob("rung-0[01]*"):
        path.unlink()
    assert main(["resume", "run"]) == 0
    assert "Sizes are left out. run/ladder has no rung 0, 1.\n" in capsys.readouterr().out
    (phase,) = Result.read(begun / "result.json").phases
    assert (phase.first_epoch, phase.seconds) == (3, pytest.approx(whole.phases[2].seconds))
    assert phase.seconds < 0.9 * whole.seconds


def test_what_a_kill_after_the_last_save_left_is_removed(begun: Path) -> None:
    (tensors,) = (begun / "checkpoints").glob("*.safetensors")
    for name in ("last-00001-0123abcd.safetensors", "last-00001-0123abcd.json.part", "mine.safetensors"):
        (begun / "checkpoints" / name).write_bytes(b"")
    assert main(["resume", "run"]) == 0
    left = {path.name for path in (begun / "checkpoints").iterdir()}
    assert left == {"last.json", tensors.name, "mine.safetensors"}


def test_other_images_are_refused(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), 20 * number).save(tmp_path / "pets" / name / f"{number}.png")
    assert main(["resume", "run", "--data", "pets"]) == 2
    error = capsys.readouterr().err
    assert "are not the images of this run: their classes are cat, dog, those of the run 0, 1, 2, 3, 4, ..." in error


@pytest.mark.parametrize("setting", [("seed", 1, 0), ("val_fraction", 0.3, 0.1)])
def test_another_split_is_refused(
    begun: Path, capsys: pytest.CaptureFixture[str], setting: tuple[str, float, float]
) -> None:
    name, now, before = setting
    assert main(["resume", "run", f"--data.{name}", str(now)]) == 2
    assert f"auxin: data.{name} is {now} and was {before} so far: another split" in capsys.readouterr().err
    assert main(["resume", "run", f"--data.{name}", str(before)]) == 0


def draw(folder: Path, seed: int, number: int = 15) -> None:
    """Fill a folder with so many images of each of two classes."""
    pixels = torch.Generator().manual_seed(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            image = torch.randint(0, 256, (8, 8), generator=pixels, dtype=torch.uint8)
            Image.fromarray(image.numpy()).save(folder / name / f"{index:02d}.png")


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on images of a folder that was killed while its test images were evaluated."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "pets", 0)
    parts = {"data": {"source": "pets"}, "train": {"epochs": 1, "precision": "32-true", "threads": 1}}
    Trainer(RunConfig.from_dict({"model": {"name": "small_cnn"}, **parts}), tmp_path / "run", console=QUIET).fit()
    (tmp_path / "run" / "result.json").unlink()
    return tmp_path / "run"


def test_images_that_have_moved_are_taken(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "pets").rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    assert main(["resume", "run", "--data", "moved"]) == 0


@pytest.mark.parametrize("images", [{"seed": 1}, {"seed": 0, "number": 16}])
def test_other_images_of_the_same_classes_are_refused(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], images: dict[str, int]
) -> None:
    draw(tmp_path / "others", **images)
    assert main(["resume", "run", "--data", "others"]) == 2
    assert "auxin: others are not the images of this run: their " in capsys.readouterr().err


def test_one_other_image_is_refused_and_an_earlier_checkpoint_has_no_checksum(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "pets" / "cat" / "03.png"
    Image.fromarray(np.asarray(Image.open(image)).T).save(image)
    assert main(["resume", "run"]) == 2
    assert "pets are not the images of this run: their checksums of the train, val and test" in capsys.readouterr().err
    saved = checkpoints.load(pets / "checkpoints" / "last.json")
    known = {name: value for name, value in saved.run["images"].items() if name in ("classes", "shape")}
    checkpoints.save(replace(saved, run={**saved.run, "images": known}), pets / "checkpoints" / "last.json")
    assert main(["resume", "run"]) == 0


def test_a_page_is_kept_where_the_images_that_were_asked_for_are_not_there(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(grown_run, tmp_path / "run")
    (run / "report.html").write_text("the page")
    assert main(["report", str(run), "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "the page"
