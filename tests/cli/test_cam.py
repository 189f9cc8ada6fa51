import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from auxin.cli import main
from auxin.cli.cam import choose, summary
from auxin.data import load
from auxin.report import as_inputs
from auxin.training import load_model
from tests.training.test_trainer import fit


def test_a_grid_and_its_numbers(grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "one.png"
    assert main(["cam", str(grown_run), "--images", "3,14", "--scores", "40", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "over 40 test images" in text and "insertion" in text and "±" in text
    assert out.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["images"] == [3, 14] and found["layers"] == ["features.7"]
    numbers = found["numbers"]["grown-1"]
    assert set(numbers) == {"entropy", "area", "insertion", "deletion", "correct"}
    for one in numbers.values():
        assert one["low"] <= one["mean"] <= one["high"]
    assert numbers["insertion"]["num_images"] == 40


def test_two_runs_where_they_disagree(grown_run: Path, fixed_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.svg"
    words = ["cam", str(grown_run), str(fixed_run), "--images", "disagree", "--count", "3", "--layer", "features.4"]
    assert main([*words, "--out", str(out)]) == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert list(found["numbers"]) == ["grown-1", "fixed-1", "difference"]
    data = load("digits")
    inputs = as_inputs(data.test_images[found["images"]], data)
    guesses = [
        load_model(run / "ladder" / f"rung-{rung:02d}.json")(inputs).argmax(1)
        for run, rung in ((grown_run, 2), (fixed_run, 0))
    ]
    assert (guesses[0] != guesses[1]).all() and len(found["images"]) == 3


def test_other_images_than_a_run_learnt_from_are_refused(
    grown_run: Path, fixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(fixed_run, tmp_path / "other")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("val_fraction: 0.1", "val_fraction: 0.25"))
    for command in (["cam", str(other)], ["report", str(other), "--data", "digits"]):
        assert main(command) == 2
        assert "digits are not the images of other: their numbers of train, val and test" in capsys.readouterr().err
    fit(tmp_path / "another-1", load("digits", val_fraction=0.25), train={"epochs": 1})
    assert main(["cam", str(grown_run), str(tmp_path / "another-1")]) == 2
    assert "digits are not the images of another-1: their numbers" in capsys.readouterr().err


def test_images_of_a_class(grown_run: Path) -> None:
    data = load("digits")
    numbers = choose("class:7", 5, [], data)
    assert data.test_labels[numbers].tolist() == [7] * 5
    assert choose("first", 3, [], data) == [0, 1, 2]


def test_the_difference_is_taken_image_by_image() -> None:
    common = torch.randn(500, generator=torch.Generator().manual_seed(0)).double().numpy()
    found = summary(["a", "b"], [{"area": common}, {"area": common + 0.1}])["difference"]["area"]
    assert found["mean"] == pytest.approx(0.1)
    assert found["high"] - found["low"] < 1e-9
    missing = summary(["a", "b"], [{"area": np.array([1.0, np.nan])}, {"area": np.array([2.0, 5.0])}])
    assert missing["difference"]["area"]["num_images"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--images", "359"], "no test image 359: they are numbered from 0 to 358"),
        (["--images", "-1"], "no test image -1"),
        (["--images", "cat"], "is not understood"),
        (["--images", "class:cat"], "no class 'cat'; choose one of 0, 1,"),
        (["--images", "disagree"], "needs two runs"),
        (["--layer", "features.3"], "no layer 'features.3'; choose one of features.0, features.4, features.7"),
        (["--rung", "7"], "has no rung 7: it has 0, 1, 2"),
        (["--out", "cam.txt"], "is not a picture"),
        (["--out", "/no/where/cam.png"], "does not exist"),
        (["--count", "0"], "at least one image"),
        (["--scores", "1"], "at least 2 images"),
        (["--data", "/no/where"], "/no/where"),
    ],
)
def test_wrong_input_is_one_sentence(
    grown_run: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["cam", str(grown_run), *([f"{words[0]}={words[1]}"])]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_runs_that_cannot_be_looked_at_are_one_sentence(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = shutil.copytree(grown_run, tmp_path / "bare", ignore=shutil.ignore_patterns("ladder", "checkpoints"))
    assert main(["cam", str(bare)]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
    assert main(["cam", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert main(["cam", *[str(grown_run)] * 3]) == 2
    assert "two runs at most" in capsys.readouterr().err
    other = shutil.copytree(grown_run, tmp_path / "other")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("source: digits", "source: flowers"))
    assert main(["cam", str(grown_run), str(other)]) == 2
    assert "learnt from digits and flowers" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["result", "similarity", "notes"])
def test_what_a_run_or_its_user_wrote_is_not_replaced(
    grown_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = shutil.copytree(grown_run, tmp_path / "run")
    (run / "notes.json").write_text("mine")
    (run / "similarity.png").write_bytes(b"of auxin similarity")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["cam", str(run), "--out", str(run / f"{name}.png")]) == 2
    assert f"would replace {run / name}.json: give another name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_earlier_picture_is_replaced(grown_run: Path, tmp_path: Path) -> None:
    words = ["cam", str(grown_run), "--count", "1", "--out", str(tmp_path / "a.png")]
    assert main(words) == 0 == main(words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]
