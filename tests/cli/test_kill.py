"""kill -9 at the worst moments: the resumed run must end with the weights of one that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from auxin.training import Result
from auxin.training import checkpoint as checkpoints
from auxin.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("killed.py")
CONFIG = """
name: tiny
model: {name: small_cnn}
optimizer: {lr: 0.05}
train: {epochs: 6, batch_size: 256, precision: 32-true, threads: 1}
growth: {method: net2net, every: 2, ratio: 0.5}
"""
# Place → epoch and stage of the checkpoint that the kill must leave.
PLACES = {
    "epoch": (2, "trained"),
    "surgery": (3, "trained"),
    "half of the tensors": (1, "grown"),
    "between tensors and manifest": (1, "grown"),
    "before the manifest counts": (1, "grown"),
}


def auxin(folder: Path, *words: str, kill: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-m", "auxin"] if kill is None else [str(SCRIPT), kill]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AUXIN_DEBUG": "0"}
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def outcome(run: Path) -> tuple[checkpoints.Checkpoint, list[dict[str, float]], Result]:
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in read_rows(run / "metrics.jsonl")]
    return checkpoints.load(run / "checkpoints" / "last.json"), rows, Result.read(run / "result.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(CONFIG)
    done = auxin(folder, "train", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny-1"


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_resumes_bit_equal(tmp_path: Path, whole: Path, place: str) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    killed = auxin(tmp_path, "train", "tiny.yaml", kill=place)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = tmp_path / "runs" / "tiny-1"
    assert not (run / "result.json").exists()
    left = checkpoints.load(run / "checkpoints" / "last.json")
    assert (left.epoch, left.stage) == PLACES[place]
    resumed = auxin(tmp_path, "resume", "runs/tiny-1")
    assert resumed.returncode == 0, resumed.stderr

    expected, expected_rows, expected_result = outcome(whole)
    found, rows, result = outcome(run)
    assert found.model.keys() == expected.model.keys()
    for name, value in expected.model.items():
        assert torch.equal(found.model[name], value), name
    for name, entries in expected.optimizer["state"].items():
        assert torch.equal(found.optimizer["state"][name]["momentum_buffer"], entries["momentum_buffer"]), name
    assert rows == expected_rows
    assert result.widths == expected_result.widths
    assert [p.test_accuracy for p in result.phases] == [p.test_accuracy for p in expected_result.phases]
    # Nothing an interrupted save wrote is left behind.
    assert sorted(path.suffix for path in (run / "checkpoints").iterdir()) == [".json", ".safetensors"]
    assert json.loads((run / "result.json").read_text())["events"]
