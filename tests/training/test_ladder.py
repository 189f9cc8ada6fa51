"""What a run leaves on its ladder: one rung per size, the best epoch of each, and what they cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from auxin.data import ImageData, Loader
from auxin.errors import ConfigError
from auxin.training import Result, Trainer, load_model, rungs
from auxin.training import account as accounts
from auxin.training import checkpoint as checkpoints
from auxin.training.energy import Energy
from auxin.training.ladder import Rung
from auxin.training.metrics import read_rows
from tests.training.test_trainer import QUIET, StopRun, assert_equal_weights, fit, fit_until, make_config

# A rate so high that the validation accuracy goes up and down within a size.
ROUGH: dict[str, Any] = {
    "train": {"epochs": 9},
    "optimizer": {"lr": 1.2},
    "growth": {"every": 3},
    "schedule": {"name": "constant"},
}


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("rough")
    fit(folder, digits, **ROUGH)
    return folder


def by_size(folder: Path) -> list[list[dict[str, Any]]]:
    rows = read_rows(folder / "metrics.jsonl")
    return [[row for row in rows if row["parameters"] == size] for size in sorted({row["parameters"] for row in rows})]


def best_epochs(folder: Path) -> list[int]:
    """The last of the most accurate epochs of each size."""
    return [max(rows, key=lambda row: (row["val_accuracy"], row["epoch"]))["epoch"] for rows in by_size(folder)]


def test_the_best_epoch_of_each_size_is_kept_unless_it_is_the_last(rough: Path, digits: ImageData) -> None:
    found = rungs(rough / "ladder", best=True)
    expected = []
    for number, (rows, best) in enumerate(zip(by_size(rough), best_epochs(rough), strict=True)):
        expected.append((number, False, rows[-1]["epoch"]))
        if best != rows[-1]["epoch"]:
            expected.append((number, True, best))
    assert [(rung.number, rung.best, rung.epoch) for rung in found] == expected
    assert 3 < len(found) < 6, "this run must show both cases, or the test shows nothing"
    for rung in found:
        images, labels = next(iter(Loader(digits, "val", batch_size=len(digits.val_labels))))
        accuracy = (load_model(rung.path)(images).argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(rung.val_accuracy, abs=1e-6)
    assert [rung.number for rung in rungs(rough / "ladder")] == [0, 1, 2]


def test_the_result_knows_the_best_epochs(rough: Path) -> None:
    result = Result.read(rough / "result.json")
    best = {rung.number: rung for rung in rungs(rough / "ladder", best=True) if rung.best}
    for number, phase in enumerate(result.phases):
        if number in best:
            assert (phase.best_epoch, phase.best_val_accuracy) == (best[number].epoch + 1, best[number].val_accuracy)
            assert phase.best_test_accuracy is not None
        else:
            assert (phase.best_epoch, phase.best_val_accuracy, phase.best_test_accuracy) == (None, None, None)


@pytest.mark.parametrize("epoch", [2, 5, 8])
def test_a_resumed_run_has_the_same_ladder(tmp_path: Path, digits: ImageData, rough: Path, epoch: int) -> None:
    fit_until(tmp_path, digits, epoch, **ROUGH)
    fit(tmp_path, digits, **ROUGH)
    ours, theirs = (rungs(folder / "ladder", best=True) for folder in (tmp_path, rough))
    assert [replace(rung, path=Path(), seconds=0) for rung in ours] == [
        replace(rung, path=Path(), seconds=0) for rung in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        assert_equal_weights(load_model(mine.path), load_model(other.path))
    assert Result.read(tmp_path / "result.json").cost == Result.read(rough / "result.json").cost


@pytest.mark.parametrize("before", [True, False])
def test_a_run_killed_at_a_best_rung_has_the_same_ladder(
    tmp_path: Path, digits: ImageData, rough: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    save = checkpoints.save

    def die(checkpoint: checkpoints.Checkpoint, manifest: Path) -> Path:
        if "best" in manifest.name:
            if not before:
                save(checkpoint, manifest)
            raise StopRun
        return save(checkpoint, manifest)

    with monkeypatch.context() as patched, pytest.raises(StopRun):
        patched.setattr(checkpoints, "save", die)
        fit(tmp_path, digits, **ROUGH)
    assert not (tmp_path / "result.json").exists()
    fit(tmp_path, digits, **ROUGH)
    ours, theirs = (rungs(folder / "ladder", best=True) for folder in (tmp_path, rough))
    assert [(rung.name, rung.epoch, rung.training_flops) for rung in ours] == [
        (rung.name, rung.epoch, rung.training_flops) for rung in theirs
    ]
    for mine, other in zip(ours, theirs, strict=True):
        assert_equal_weights(load_model(mine.path), load_model(other.path))


def test_a_better_epoch_replaces_the_best_one_kept_before(tmp_path: Path, digits: ImageData) -> None:
    trainer = Trainer(make_config(growth={"method": None}), tmp_path, data=digits, console=QUIET)
    kept = []
    for epoch, accuracy in enumerate([0.5, 0.4, 0.6, 0.3]):
        row = {**trainer._epoch(epoch), "val_accuracy": accuracy}
        trainer._ladder.keep_best(row, 0)
        trainer._save("trained", row)
        kept.append([rung.epoch for rung in rungs(tmp_path / "ladder", best=True)])
    assert kept == [[], [0], [0], [2]]
    row = {**trainer._epoch(4), "val_accuracy": 0.6}
    trainer._ladder.keep_best(row, 0)  # equal: the later one is the better trained
    trainer._save("trained", row)
    trainer._ladder.keep(0)
    assert [rung.best for rung in rungs(tmp_path / "ladder", best=True)] == [False]
    assert len(list((tmp_path / "ladder").iterdir())) == 2, "the best rung's tensors are gone with its manifest"


def test_saving_a_rung_spares_the_tensors_of_its_best_epoch(rough: Path, tmp_path: Path) -> None:
    saved = checkpoints.load(rough / "checkpoints" / "last.json")
    best = checkpoints.save(saved, tmp_path / "rung-00-best.json")
    checkpoints.save(saved, tmp_path / "rung-00.json")
    checkpoints.save(replace(saved, epoch=3), tmp_path / "rung-00.json")
    assert checkpoints.load(best).epoch == saved.epoch
    checkpoints.remove(tmp_path / "rung-00.json")
    assert checkpoints.load(best).epoch == saved.epoch
    assert len(list(tmp_path.iterdir())) == 2


def test_the_costs_are_those_of_every_step(tmp_path: Path, digits: ImageData) -> None:
    trainer = fit(tmp_path, digits, train={"epochs": 4}, growth={"every": 2, "times": 1})
    result = Result.read(tmp_path / "result.json")
    found = rungs(tmp_path / "ladder")
    training, validation = 0, 0
    for rung in found:
        model = load_model(rung.path)
        images, labels = next(iter(Loader(digits, "train", batch_size=256)))
        with FlopCounterMode(display=False) as step:
            cross_entropy(model.train()(images), labels).backward()
        training += 2 * len(trainer.train_loader) * step.get_total_flops()
        validation += 2 * len(digits.val_labels) * rung.flops
        assert rung.training_flops == training + (result.cost["scoring"] + result.cost["surgery"]) * rung.number
    assert (result.cost["training"], result.cost["validation"]) == (training, validation)
    assert result.cost["surgery"] > 0
    assert [phase.training_flops for phase in result.phases] == [rung.training_flops for rung in found]
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["training_flops"] == found[-1].training_flops
    assert result.energy is None


def test_a_method_that_looks_at_data_is_counted_as_scoring(tmp_path: Path, digits: ImageData) -> None:
    fit(tmp_path, digits, train={"epochs": 2}, growth={"every": 1, "times": 1, "method": "gradmax"})
    cost = Result.read(tmp_path / "result.json").cost
    assert cost["scoring"] > cost["surgery"] > 0


class FakeMeter:
    """Uses a tenth of a kWh at each reading."""

    running = 0

    def __init__(self, before: float) -> None:
        self.kwh = before

    def start(self) -> None:
        FakeMeter.running += 1

    def read(self) -> float:
        self.kwh += 0.1
        return self.kwh

    def stop(self) -> Energy:
        FakeMeter.running -= 1
        return Energy(self.kwh, "modelled", "fake")


def test_energy_is_summed_over_sittings(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "energy_meter", FakeMeter)
    parts: dict[str, Any] = {"train": {"energy": True, "epochs": 4}, "growth": {"every": 2, "times": 1}}
    fit_until(tmp_path, digits, 1, **parts)
    fit(tmp_path, digits, **parts)
    result = Result.read(tmp_path / "result.json")
    # One save per epoch, and one after the event.
    assert result.energy == {"kwh": pytest.approx(0.5), "source": "modelled", "note": "fake"}
    assert [phase.energy_kwh for phase in result.phases] == [pytest.approx(0.2), pytest.approx(0.5)]


def test_a_run_that_began_without_a_meter_has_no_sum_of_energy(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_until(tmp_path, digits, 1)
    monkeypatch.setattr(accounts, "energy_meter", FakeMeter)
    trainer = fit(tmp_path, digits, train={"energy": True})
    assert "began without" in trainer.account.note
    assert Result.read(tmp_path / "result.json").energy is None


def test_results_and_checkpoints_of_earlier_versions_are_read(tmp_path: Path, digits: ImageData) -> None:
    whole = fit(tmp_path / "whole", digits)
    written = json.loads((whole.folder.path / "result.json").read_text())
    for key in ("decisions", "cost", "energy"):
        written.pop(key, None)
    for phase in written["phases"]:
        del phase["training_flops"], phase["energy_kwh"]
    (tmp_path / "old.json").write_text(json.dumps(written))
    result = Result.read(tmp_path / "old.json")
    assert (result.decisions, result.cost, result.phases[0].training_flops) == ([], {}, 0)
    fit_until(tmp_path, digits, 3)
    for manifest in (tmp_path / "checkpoints" / "last.json", tmp_path / "ladder" / "rung-00.json"):
        document = json.loads(manifest.read_text())
        del document["run"], document["sha256"], document["config"]["target"], document["config"]["model"]["start"]
        document["sha256"] = checkpoints._digest(document)
        manifest.write_text(json.dumps(document))
    (old,) = rungs(tmp_path / "ladder")
    assert isinstance(old, Rung)
    assert (old.training_flops, old.energy_kwh) == (0, None)
    trainer = fit(tmp_path, digits)
    assert trainer.epochs_done == 5


def test_a_run_can_start_from_a_rung(tmp_path: Path, digits: ImageData, rough: Path) -> None:
    rung = rungs(rough / "ladder")[1]
    parts: dict[str, Any] = {"model": {"start": str(rung.path)}, "growth": {"every": 1}, "train": {"epochs": 3}}
    trainer = Trainer(make_config(**parts), tmp_path / "whole", data=digits, console=QUIET)
    assert_equal_weights(trainer.model, load_model(rung.path))
    assert trainer.events == []
    whole = fit(tmp_path / "whole", digits, **parts)
    result = Result.read(tmp_path / "whole" / "result.json")
    assert result.phases[0].parameters == rung.parameters
    assert len(result.events) == len(result.phases) - 1 == 2
    assert next(iter(result.widths.values()))[0] == 6
    fit_until(tmp_path / "cut", digits, 2, **parts)
    assert_equal_weights(fit(tmp_path / "cut", digits, **parts).model, whole.model)
    for found in rungs(tmp_path / "cut" / "ladder"):
        assert sum(p.numel() for p in load_model(found.path).parameters()) == found.parameters


def test_a_run_from_a_rung_need_not_grow(tmp_path: Path, digits: ImageData, rough: Path) -> None:
    rung = rungs(rough / "ladder")[1]
    parts: dict[str, Any] = {"model": {"start": str(rung.path)}, "growth": {"method": None}, "train": {"epochs": 2}}
    fit_until(tmp_path, digits, 1, **parts)
    trainer = fit(tmp_path, digits, **parts)
    assert sum(p.numel() for p in trainer.model.parameters()) == rung.parameters
    assert_equal_weights(load_model(rungs(tmp_path / "ladder")[0].path), trainer.model)
    with pytest.raises(ConfigError, match="keeps its model"):
        Trainer(
            make_config(**{**parts, "model": {"start": str(rung.path), "kwargs": {"width": 5}}}),
            tmp_path / "other",
            data=digits,
            console=QUIET,
        )
    assert torch.isfinite(next(trainer.model.parameters())).all()
