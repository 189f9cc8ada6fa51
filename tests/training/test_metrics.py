import csv
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from auxin.errors import CheckpointError
from auxin.training.metrics import MetricsLog, read_rows


def write(folder: Path, epochs: range, done: int, loss: float = 1.0) -> None:
    log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard", done)
    for epoch in epochs:
        log.append({"epoch": epoch, "val_loss": loss + epoch})
    log.close()


def test_a_resume_drops_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(5), 0)
    write(tmp_path, range(3, 6), 3, loss=10.0)
    expected = [(0, 1.0), (1, 2.0), (2, 3.0), (3, 13.0), (4, 14.0), (5, 15.0)]
    assert [(row["epoch"], row["val_loss"]) for row in read_rows(tmp_path / "metrics.jsonl")] == expected
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [(int(row["epoch"]), float(row["val_loss"])) for row in csv.DictReader(file)] == expected
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val_loss")] == expected


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(2), 0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "val_lo')
    write(tmp_path, range(2, 4), 2)
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_stays_valid_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.append({"epoch": 0, "val_loss": float("nan")})
    log.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"epoch": 0, "val_loss": None}]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_folder_of_tensorboard_that_is_gone_is_one_sentence_and_no_lost_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.append({"epoch": 0, "val_loss": 1.0})
    shutil.rmtree(tmp_path / "tensorboard")
    with pytest.raises(CheckpointError, match=r"tensorboard could not be written .*: check its folder and run auxin"):
        log.append({"epoch": 1, "val_loss": 2.0})
    log.close()
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1]
    write(tmp_path, range(1, 3), 1)
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2]


@pytest.mark.parametrize("damage", ['{"epoch": 1, "val_', '{"epoch": "one"}', "[1]", ""])
def test_a_damaged_line_in_the_middle_costs_no_other(tmp_path: Path, damage: str) -> None:
    write(tmp_path, range(4), 0)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
    before = path.read_bytes()
    log = MetricsLog(path, tmp_path / "tensorboard", 4)
    log.close()
    assert [row["epoch"] for row in log.rows] == [row["epoch"] for row in read_rows(path)] == [0, 2, 3]
    assert (tmp_path / "metrics.jsonl.bak").read_bytes() == before
    assert "damaged lines" in log.note and "metrics.jsonl.bak" in log.note


def test_a_line_cut_by_a_kill_needs_no_copy(tmp_path: Path) -> None:
    write(tmp_path, range(2), 0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "val_lo')
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 2)
    log.close()
    assert not log.note and not (tmp_path / "metrics.jsonl.bak").exists()
