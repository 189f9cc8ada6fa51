import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import auxin
from auxin.cli import main
from auxin.data import ImageData, load
from auxin.errors import CheckpointError
from auxin.models import build
from auxin.training import Result
from auxin.training.export import export_program
from tests.training.test_trainer import fit

# Runs in a process of its own, where importing auxin is an error.
PLAIN = """
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "auxin":
            raise ImportError("auxin is not installed here")
sys.meta_path.insert(0, Forbidden())
import torch
torch.set_num_threads(1)
model = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2], weights_only=True)
torch.save([model(images[:count]) for count in map(int, sys.argv[4:])], sys.argv[3])
assert "auxin" not in sys.modules
"""


def run_plain(folder: Path, program: Path, images: Tensor, *counts: int) -> list[Tensor]:
    torch.save(images, folder / "images.pt")
    words = [str(program), str(folder / "images.pt"), str(folder / "logits.pt"), *map(str, counts)]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *words],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits: list[Tensor] = torch.load(folder / "logits.pt", weights_only=True)
    return logits


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run-1"
    fit(folder, data, train={"epochs": 4}, growth={"every": 2, "times": 1})
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    out = run.parent / "small"
    assert main(["export", str(run), "--rung", "1", "--out", str(out)]) == 0
    return out


def test_the_program_runs_without_auxin_at_the_accuracy_that_was_measured(
    exported: Path, run: Path, data: ImageData, tmp_path: Path
) -> None:
    card = json.loads((exported / "model.json").read_text())
    mean, std = (torch.tensor(card["input"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    images = (data.test_images / 255 - mean) / std
    alone, all_of_them = run_plain(tmp_path, exported / "model.pt2", images, 1, len(images))
    assert alone.shape == (1, 10)
    torch.testing.assert_close(alone, all_of_them[:1], rtol=1e-4, atol=1e-4)
    accuracy = (all_of_them.argmax(1) == data.test_labels).float().mean().item()
    phase = Result.read(run / "result.json").phases[1]
    assert accuracy == pytest.approx(phase.test_accuracy, abs=1e-6)
    assert card["test_accuracy"] == phase.test_accuracy
    assert card["parameters"] == phase.parameters
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert card["input"]["shape"] == [None, 1, 8, 8]
    assert card["source"]["rung"] == "1"
    made = Result.read(run / "result.json")
    assert card["source"]["commits"] == [{"commit": made.commit, "dirty": made.dirty}]
    assert {path.name for path in exported.iterdir()} == {"model.pt2", "model.safetensors", "model.json", "README.md"}


def test_the_weights_are_plain_and_fit_the_program(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    program = torch.export.load(exported / "model.pt2").module()
    assert weights.keys() == program.state_dict().keys()
    for name, value in program.state_dict().items():
        assert torch.equal(weights[name], value), name
    before = program(torch.ones(1, 1, 8, 8))
    program.load_state_dict({name: torch.zeros_like(value) for name, value in weights.items()})
    assert not torch.equal(program(torch.ones(1, 1, 8, 8)), before)
    program.load_state_dict(weights)
    assert torch.equal(program(torch.ones(1, 1, 8, 8)), before)


def test_the_readme_is_true(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported)
    names = {"images": torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)}
    exec(code, names)
    assert names["logits"].shape == (3, 10)


def test_an_export_is_replaced_only_when_told_to(exported: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--rung", "0", "--out", str(exported)]) == 2
    assert "give --force" in capsys.readouterr().err
    assert json.loads((exported / "model.json").read_text())["source"]["rung"] == "1"
    assert main(["export", str(run), "--rung", "0", "--out", str(exported), "--force"]) == 0
    assert json.loads((exported / "model.json").read_text())["source"]["rung"] == "0"
    assert main(["export", str(run), "--rung", "1", "--out", str(exported), "--force"]) == 0
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_no_export_is_never_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    assert main(["export", str(run), "--out", str(tmp_path), "--force"]) == 2
    assert "not an earlier export" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_inserted_blocks_are_in_the_program() -> None:
    torch.manual_seed(0)
    model, image = build("small_cnn").eval(), torch.randn(2, 1, 8, 8)
    graph = auxin.trace(model, image)
    auxin.deepen(model, graph.sites[0].name, graph=graph, noise=0.3)
    program, any_batch = export_program(model, image)
    assert any_batch
    assert any(".grown." in name for name in program.state_dict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    logits = torch.export.load(file).module()(image)
    torch.testing.assert_close(logits, model.eval()(image), rtol=1e-4, atol=1e-4)


class OneAtATime(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(1, 64) * 2


class Undecided(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sum(dim=(1, 2, 3)) if images.sum() > 0 else images.mean(dim=(1, 2, 3))


def test_a_model_of_one_image_is_exported_as_that() -> None:
    program, any_batch = export_program(OneAtATime(), torch.zeros(2, 1, 8, 8))
    assert not any_batch
    assert program.module()(torch.ones(1, 1, 8, 8)).sum() == 128


def test_a_model_that_cannot_be_exported_is_said() -> None:
    with pytest.raises(CheckpointError, match="cannot be exported"):
        export_program(Undecided(), torch.zeros(2, 1, 8, 8))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def native(program: object, file: object) -> None:
        assert isinstance(file, io.BytesIO), "torch's own writer ends the process where the disk is full"
        file.write(b"program")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(torch.export, "save", native)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "out could not be written because the disk is full: make room and try again" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
