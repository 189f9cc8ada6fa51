import json
import os
import shutil
from pathlib import Path

import pytest

from auxin.cli import main
from auxin.data import ImageData, load
from auxin.errors import ConfigError, DataError
from auxin.training import Result, RunFolder, load_model, rungs
from auxin.training.finish import finish, finishing_config
from auxin.training.metrics import read_rows
from auxin.training.progress import EpochProgress
from tests.training.test_trainer import QUIET, assert_equal_weights, fit


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("ladder") / "run-1"
    fit(folder, data, train={"epochs": 4}, growth={"every": 2, "times": 1})
    finish(RunFolder(folder), 2, console=QUIET, data=data)
    return folder


def test_the_table_shows_every_checkpoint(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ladder", str(finished)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[2:]}
    result = Result.read(finished / "result.json")
    names = [rung.name for rung in rungs(finished / "ladder", best=True)]
    assert set(rows) == {*names, "0-finished", "1-finished"}
    for number, phase in enumerate(result.phases):
        row = rows[str(number)]
        assert row[1:6] == [
            f"{phase.parameters:,}",
            f"{phase.flops / 1e6:.2f}",
            f"{phase.val_accuracy:.2%}",
            f"{phase.test_accuracy:.2%}",
            f"{sum(p.seconds for p in result.phases[: number + 1]):.1f}",
        ]
        done = Result.read(finished / "finished" / f"rung-{number:02d}" / "result.json").phases[0]
        assert rows[f"{number}-finished"][3:5] == [f"{done.val_accuracy:.2%}", f"{done.test_accuracy:.2%}"]


def test_json_says_the_same_and_marks_the_fronts(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ladder", str(finished), "--json"]) == 0
    entries = {entry["rung"]: entry for entry in json.loads(capsys.readouterr().out)["rungs"]}
    best = max(entry["val_accuracy"] for entry in entries.values())
    for entry in entries.values():
        assert Path(entry["path"]).is_file()
        if entry["val_accuracy"] == best and entry["parameters"] == entries["0"]["parameters"]:
            assert entry["pareto_parameters"]
    assert any(entry["pareto_flops"] for entry in entries.values())
    # What came before is part of what a finished rung cost.
    assert entries["0-finished"]["training_flops"] > entries["0"]["training_flops"] > 0
    assert entries["0-finished"]["seconds"] > entries["0"]["seconds"]


def test_one_rung_is_chosen(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ladder", str(finished), "--max-params", "0.4k"]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert Path(first).is_file()
    assert "398 parameters" in second
    assert main(["ladder", str(finished), "--max-latency-ms", "10000", "--rung", "1", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["rung"], entry["parameters"]) == ("1", 808)
    assert 0 < entry["latency_ms"] < 10000


MISTAKES = {
    "not a run": (["ladder", "nowhere"], "not the folder of a run"),
    "too small": (["ladder", "RUN", "--max-params", "10"], "the nearest is rung 0 with 398 parameters"),
    "no number": (["ladder", "RUN", "--max-params", "few"], "not a number"),
    "no limit": (["ladder", "RUN", "--max-latency-ms", "nan"], "nan is not a number"),
    "no share": (["ladder", "RUN", "--min-accuracy", "much"], "much is not a number"),
    "rate alone": (["ladder", "RUN", "--lr", "0.1"], "--lr belongs to --finish"),
    "no epochs": (["ladder", "RUN", "--finish", "0"], "at least 1"),
    "other finish": (["ladder", "RUN", "--finish", "5"], "--finish 2 --lr 0.005"),
    "finish of nothing": (["ladder", "nowhere", "--finish", "5"], "not the folder of a run"),
    "export of nothing": (["export", "nowhere", "--out", "x"], "not the folder of a run"),
    "export to nowhere": (["export", "RUN"], "--out"),
    "export no rung": (["export", "RUN", "--rung", "9", "--out", "x"], "there is no rung 9"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = MISTAKES[name]
    assert main([str(finished) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("auxin: ") and error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "x").exists()


def test_a_run_without_a_rung_says_so(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(finished / "config.yaml", tmp_path)
    assert main(["ladder", str(tmp_path)]) == 2
    assert "no rung yet" in capsys.readouterr().err


def test_the_sizes_of_a_planned_run_can_be_finished_for_fewer_epochs(tmp_path: Path, data: ImageData) -> None:
    plan = [{"after": 2, "widen": {r"features\..*": 6}, "deepen": {r"features\.2": 1}}]
    fit(tmp_path, data, train={"epochs": 3}, growth={"trigger": "planned", "plan": plan})
    paths = finish(RunFolder(tmp_path), 1, console=QUIET, data=data)
    assert len(rungs(tmp_path / "ladder")) == 2 and paths is not None
    for number in range(2):
        done = Result.read(tmp_path / "finished" / f"rung-{number:02d}" / "result.json")
        assert len(done.phases) == 1 and not done.config["growth"]["plan"]


def test_a_finish_trains_each_rung_on_from_its_weights(finished: Path, data: ImageData) -> None:
    for rung in rungs(finished / "ladder"):
        place = finished / "finished" / f"rung-{rung.number:02d}"
        config = finishing_config(rung, 2)
        assert (config.growth.method, config.schedule.name, config.optimizer.lr) == (None, "cosine", 0.05 * 0.1)
        assert (config.train.seed, config.data) == (0, config.data)
        result = Result.read(place / "result.json")
        assert [phase.parameters for phase in result.phases] == [rung.parameters]
        rows = read_rows(place / "metrics.jsonl")
        assert len(rows) == 2
        assert rows[0]["lr"] > rows[1]["lr"] > 0
        before = read_rows(finished / "metrics.jsonl")
        assert rows[0]["train_loss"] < before[0]["train_loss"], "it must not begin anew"
        (done,) = rungs(place / "ladder")
        assert sum(p.numel() for p in load_model(done.path).parameters()) == rung.parameters


def test_an_interrupted_finish_goes_on(
    finished: Path,
    tmp_path: Path,
    data: ImageData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run-1"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("finished"))
    steps = 0

    def advance(self: EpochProgress) -> None:
        nonlocal steps
        steps += 1
        if steps == 3 * 5 + 2:  # rung 1, second epoch, second step
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(EpochProgress, "advance", advance)
        assert main(["ladder", str(run), "--finish", "2"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    first = (run / "finished" / "rung-00" / "result.json").read_bytes()
    assert not (run / "finished" / "rung-01" / "result.json").exists()
    assert main(["ladder", str(run), "--finish", "2"]) == 0
    text = capsys.readouterr().out
    assert "rung 1 (2/2) epoch   2/2" in text
    assert "rung 0 (1/2)" not in text and "epoch   1/2" not in text
    assert "1-finished" in text
    assert (run / "finished" / "rung-00" / "result.json").read_bytes() == first
    for number in (0, 1):
        ours, theirs = (
            load_model(rungs(folder / "finished" / f"rung-{number:02d}" / "ladder")[0].path)
            for folder in (run, finished)
        )
        assert_equal_weights(ours, theirs)


def test_a_finish_of_another_length_is_refused(finished: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match="--finish 2"):
        finish(RunFolder(finished), 3, console=QUIET, data=data)
    with pytest.raises(ConfigError, match="remove"):
        finish(RunFolder(finished), 2, 0.3, console=QUIET, data=data)


def test_a_finish_on_other_images_is_refused(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("finished"))
    with pytest.raises(
        DataError, match=r"digits are not the images of this run: their channel means are 0\.\d+, those"
    ):
        finish(RunFolder(run), 1, console=QUIET, data=load("digits", seed=1))
    assert not list((run / "finished").rglob("checkpoints"))


def test_a_damaged_rung_spoils_no_other(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    os.truncate(run / "ladder" / "rung-00.json", 200)
    os.truncate(run / "finished" / "rung-01" / "ladder" / "rung-00.json", 200)
    assert main(["ladder", str(run), "--json"]) == 0
    printed = capsys.readouterr()
    names = {entry["rung"] for entry in json.loads(printed.out)["rungs"]}
    assert "1" in names and not names & {"0", "0-finished", "1-finished"}
    assert printed.err.count("a rung is left out. Checkpoint") == printed.err.count("\n") == 2
    assert main(["export", str(run), "--rung", "1", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    for path in (run / "ladder").glob("*.json"):
        os.truncate(path, 200)
    assert main(["ladder", str(run)]) == 2
    assert "has no rung that is whole" in capsys.readouterr().err
