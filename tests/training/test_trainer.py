import csv
import io
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from auxin.data import ImageData, Loader
from auxin.errors import CheckpointError, ConfigError, TrainingError
from auxin.models import build
from auxin.training import Result, RunConfig, Trainer, load_model, provenance, rungs
from auxin.training import checkpoint as checkpoints
from auxin.training.begun import config_of
from auxin.training.folder import RunFolder
from auxin.training.growth import written_out
from auxin.training.metrics import read_rows

QUIET = Console(quiet=True)


def make_config(**parts: dict[str, Any]) -> RunConfig:
    defaults: dict[str, dict[str, Any]] = {
        "model": {"name": "small_cnn"},
        "optimizer": {"lr": 0.05},
        "train": {"epochs": 5, "batch_size": 256, "precision": "32-true", "threads": 1},
        "growth": {"every": 2, "ratio": 0.5},
    }
    merged = {part: {**defaults.get(part, {}), **parts.get(part, {})} for part in {**defaults, **parts}}
    return RunConfig.from_dict(merged)


def fit(folder: Path, data: ImageData, **parts: dict[str, Any]) -> Trainer:
    trainer = Trainer(make_config(**parts), folder, data=data, console=QUIET)
    trainer.fit()
    return trainer


class StopRun(Exception):
    pass


def fit_until(folder: Path, data: ImageData, epoch: int, **parts: dict[str, Any]) -> None:
    """Train, and stop half-way through an epoch as a kill would."""
    trainer = Trainer(make_config(**parts), folder, data=data, console=QUIET)
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1
        if steps == epoch * len(trainer.train_loader) + 2:
            raise StopRun

    trainer.progress.advance = advance  # type: ignore[method-assign]
    with pytest.raises(StopRun):
        trainer.fit()


def assert_equal_weights(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_a_run_grows_and_reports_every_size(tmp_path: Path, digits: ImageData) -> None:
    trainer = fit(tmp_path, digits)
    result = Result.read(tmp_path / "result.json")
    assert [(phase.first_epoch, phase.last_epoch) for phase in result.phases] == [(1, 2), (3, 4), (5, 5)]
    assert [event["epoch"] for event in result.events] == [1, 3]
    sizes = [phase.parameters for phase in result.phases]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == sum(p.numel() for p in build("small_cnn").parameters())
    assert sizes[-1] == sum(p.numel() for p in trainer.model.parameters())
    assert all(widths == [4, 6, 9] for widths in result.widths.values())
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["parameters"] for row in rows] == [sizes[0]] * 2 + [sizes[1]] * 2 + [sizes[2]]
    assert [phase.val_accuracy for phase in result.phases] == [rows[index]["val_accuracy"] for index in (1, 3, 4)]
    assert result.config == replace(trainer.config, growth=written_out(trainer.config.growth)).to_dict()
    assert {"commit", "dirty", "hardware", "versions", "seed"} <= json.loads(
        (tmp_path / "result.json").read_text()
    ).keys()


def test_every_rung_is_the_model_that_was_measured(tmp_path: Path, digits: ImageData) -> None:
    fit(tmp_path, digits)
    result = Result.read(tmp_path / "result.json")
    found = rungs(tmp_path / "ladder")
    assert [rung.parameters for rung in found] == [phase.parameters for phase in result.phases]
    for rung, phase in zip(found, result.phases, strict=True):
        model = load_model(rung.path)
        images, labels = next(iter(Loader(digits, "val", batch_size=len(digits.val_labels))))
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(phase.val_accuracy, abs=1e-6)
        images, labels = next(iter(Loader(digits, "test", batch_size=len(digits.test_labels))))
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
        assert accuracy == pytest.approx(phase.test_accuracy, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("epoch", [0, 1, 2, 4])
def test_a_resumed_run_ends_bit_equal(tmp_path: Path, digits: ImageData, optimizer: str, epoch: int) -> None:
    parts: dict[str, Any] = {
        "optimizer": {"name": optimizer, "lr": 0.02},
        "growth": {"trigger": "plateau", "patience": 1},
    }
    if epoch:
        parts["growth"] = {"trigger": "every", "every": 2}
    if epoch == 2:
        steps = [
            {"after": 2, "widen": {r"features\..*": 7}, "deepen": {r"features\.[25]": 1}},
            {"after": 4, "widen": {r".*": 9}},
        ]
        parts["growth"] = {"trigger": "planned", "plan": steps}
    whole = fit(tmp_path / "whole", digits, **parts)
    fit_until(tmp_path / "cut", digits, epoch, **parts)
    resumed = fit(tmp_path / "cut", digits, **parts)
    assert_equal_weights(whole.model, resumed.model)
    timeless = [
        [
            {key: value for key, value in row.items() if "seconds" not in key}
            for row in read_rows(folder / "metrics.jsonl")
        ]
        for folder in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert timeless[0] == timeless[1]
    assert [row["epoch"] for row in timeless[1]] == [0, 1, 2, 3, 4]
    with open(tmp_path / "cut" / "metrics.csv", newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", ["net2net", "random"])
def test_a_resume_is_bit_equal_in_bf16_and_channels_last(tmp_path: Path, digits: ImageData, method: str) -> None:
    parts: dict[str, Any] = {"train": {"precision": "bf16-mixed"}, "growth": {"method": method}}
    whole = fit(tmp_path / "whole", digits, **parts)
    fit_until(tmp_path / "cut", digits, 3, **parts)
    resumed = fit(tmp_path / "cut", digits, **parts)
    assert len(resumed.events) == 2
    assert_equal_weights(whole.model, resumed.model)


@pytest.mark.parametrize("method", ["random", "splitting", "firefly"])
def test_the_second_term_alone_leaves_a_run_bit_equal(tmp_path: Path, digits: ImageData, method: str) -> None:
    second = {"iterations": 5, "mean_similarity": 0.0, "weight_change": 0.1}
    plain = fit(tmp_path / "plain", digits, growth={"method": method})
    refined = fit(tmp_path / "refined", digits, growth={"method": method, "similarity": second})
    assert len(refined.events) == 2
    assert_equal_weights(plain.model, refined.model)


def test_a_result_tells_every_session_of_a_resumed_run(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_until(tmp_path / "cut", digits, 1)
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "b" * 40, "dirty": True})
    fit_until(tmp_path / "cut", digits, 2, optimizer={"lr": 0.02})
    first = checkpoints.load(tmp_path / "cut" / "ladder" / "rung-00.json").run["sessions"]
    assert [one["from_epoch"] for one in first] == [1, 2]
    monkeypatch.setattr(provenance, "commit", lambda: {"commit": "c" * 40, "dirty": False})
    fit(tmp_path / "cut", digits, optimizer={"lr": 0.02})
    result = Result.read(tmp_path / "cut" / "result.json")
    assert [one["from_epoch"] for one in result.sessions] == [1, 2, 4]
    assert [one.get("changed") for one in result.sessions] == [None, {"optimizer.lr": [0.05, 0.02]}, None]
    assert [one["commit"][0] for one in result.sessions[1:]] == ["b", "c"] and result.commit == "c" * 40
    assert result.sessions[-1]["hardware"] == result.hardware and result.sessions[0]["versions"] == result.versions


def test_a_result_of_one_session_lists_none(tmp_path: Path, digits: ImageData) -> None:
    fit(tmp_path, digits, train={"epochs": 1})
    assert "sessions" not in json.loads((tmp_path / "result.json").read_text())


def test_a_finished_run_is_not_trained_again(tmp_path: Path, digits: ImageData) -> None:
    first = fit(tmp_path, digits)
    before = (tmp_path / "result.json").read_bytes()
    again = Trainer(first.config, tmp_path, data=digits, console=QUIET)
    assert again.fit() == Result.read(tmp_path / "result.json")
    assert (tmp_path / "result.json").read_bytes() == before
    (tmp_path / "result.json").unlink()  # killed while the test images were evaluated
    fit(tmp_path, digits)
    assert Result.read(tmp_path / "result.json").phases == Result.read(tmp_path / "result.json").phases
    assert [phase["test_accuracy"] for phase in json.loads(before)["phases"]] == [
        phase.test_accuracy for phase in Result.read(tmp_path / "result.json").phases
    ]


class Poisoned(nn.Module):
    """Its loss is NaN from some forward pass in training on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.net, self.after, self.passes = build("small_cnn"), after, 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        logits: Tensor = self.net(images)
        return logits * float("nan") if self.passes >= self.after else logits


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path: Path, digits: ImageData) -> None:
    config = make_config(growth={"method": None})
    trainer = Trainer(config, tmp_path, data=digits, model=Poisoned(9), console=QUIET)
    assert len(trainer.train_loader) == 5
    with pytest.raises(TrainingError, match="nan at epoch 2, step 4 of 5") as caught:
        trainer.fit()
    assert "optimizer.lr" in str(caught.value)
    saved = checkpoints.load(tmp_path / "checkpoints" / "last.json")
    assert saved.epoch == 0
    assert all(torch.isfinite(value).all() for value in saved.model.values())
    resumed = Trainer(config, tmp_path, data=digits, model=Poisoned(10**9), console=QUIET)
    assert len(resumed.fit().phases) == 1


@pytest.mark.parametrize("carry", [True, False])
def test_moments_of_old_units_start_anew_where_asked(tmp_path: Path, digits: ImageData, carry: bool) -> None:
    growth = {"carry_state": carry, "every": 1, "times": 1}
    fit_until(tmp_path, digits, 1, growth=growth, train={"epochs": 2})
    saved = checkpoints.load(tmp_path / "checkpoints" / "last.json")
    assert saved.stage == "grown"
    assert bool(saved.optimizer["state"]) is carry


def test_a_learning_rate_can_restart_after_growth(tmp_path: Path, digits: ImageData) -> None:
    growth = {"every": 2, "times": 1}
    fit(tmp_path / "keep", digits, train={"epochs": 4}, growth=growth)
    fit(tmp_path / "restart", digits, train={"epochs": 4}, growth=growth, schedule={"after_growth": "restart"})
    keep, restart = (
        [row["lr"] for row in read_rows(tmp_path / name / "metrics.jsonl")] for name in ("keep", "restart")
    )
    assert keep[:2] == restart[:2]
    assert restart[2] > keep[1] > keep[2]


def test_bf16_autocast_keeps_weights_and_moments_in_fp32(tmp_path: Path, digits: ImageData) -> None:
    trainer = fit(tmp_path, digits, train={"precision": "bf16-mixed", "epochs": 2, "clip_norm": 1.0})
    assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}
    assert {state["momentum_buffer"].dtype for state in trainer.optimizer.state.values()} == {torch.float32}


def test_gradients_are_clipped(tmp_path: Path, digits: ImageData) -> None:
    plain = {
        "growth": {"method": None},
        "optimizer": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "lr": 1.0},
    }
    trainer = Trainer(
        make_config(train={"clip_norm": 1e-3, "epochs": 1}, schedule={"name": "constant"}, **plain),
        tmp_path,
        data=digits,
        console=QUIET,
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.fit()
    moved = (
        sum(float((p.detach() - q).square().sum()) for p, q in zip(trainer.model.parameters(), before, strict=True))
        ** 0.5
    )
    assert 0 < moved <= 5 * 1e-3 * 1.01  # five steps of rate 1


def test_the_first_step_is_the_step_of_a_plain_loop(tmp_path: Path, digits: ImageData) -> None:
    trainer = Trainer(
        make_config(
            growth={"method": None}, train={"label_smoothing": 0.1, "epochs": 1}, schedule={"name": "constant"}
        ),
        tmp_path,
        data=digits,
        console=QUIET,
    )
    model = build("small_cnn", num_classes=10, in_channels=1)
    model.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loader = Loader(digits, "train", batch_size=256, seed=0, drop_last=True)
    for images, labels in loader:
        optimizer.zero_grad()
        cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
    trainer.fit()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_process_gets_its_switches_back(tmp_path: Path, digits: ImageData) -> None:
    before = (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())
    seen: list[bool] = []
    trainer = Trainer(make_config(train={"epochs": 1}), tmp_path, data=digits, console=QUIET)
    trainer.progress.advance = lambda: seen.append(torch.are_deterministic_algorithms_enabled())  # type: ignore[method-assign]
    trainer.fit()
    assert all(seen) and seen
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before


def test_a_model_of_ones_own(tmp_path: Path, digits: ImageData) -> None:
    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    trainer = Trainer(make_config(), tmp_path, data=digits, model=make(), console=QUIET)
    result = trainer.fit()
    assert list(result.widths.values()) == [[8, 12, 18]]
    loaded = load_model(rungs(tmp_path / "ladder")[-1].path, base=make())
    assert_equal_weights(loaded, trainer.model)
    with pytest.raises(CheckpointError, match="fit"):
        load_model(rungs(tmp_path / "ladder")[-1].path, base=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_settings_that_cannot_be_used(tmp_path: Path, digits: ImageData) -> None:
    with pytest.raises(ConfigError, match="net2net"):
        Trainer(make_config(growth={"method": "magic"}), tmp_path, data=digits, console=QUIET)
    fit(tmp_path, digits)
    (tmp_path / "result.json").unlink()
    with pytest.raises(ConfigError, match="keeps its model"):
        Trainer(make_config(model={"kwargs": {"width": 5}}), tmp_path, data=digits, console=QUIET)
    with pytest.raises(ConfigError, match="already grown"):
        Trainer(make_config(growth={"method": None}), tmp_path, data=digits, console=QUIET)


def test_output_is_one_line_an_epoch_where_there_is_no_terminal(tmp_path: Path, digits: ImageData) -> None:
    text = io.StringIO()
    Trainer(make_config(), tmp_path, data=digits, console=Console(file=text, width=40)).fit()
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch", "grew", "epoch", "epoch", "grew", "epoch"]
    assert "\x1b" not in text.getvalue()


def test_a_loss_that_is_no_number_in_the_first_epoch_promises_no_checkpoint(tmp_path: Path, digits: ImageData) -> None:
    config = make_config(growth={"method": None})
    with pytest.raises(TrainingError, match="at epoch 1, step 1 of 5: begin again with a lower") as caught:
        Trainer(config, tmp_path, data=digits, model=Poisoned(1), console=QUIET).fit()
    assert "checkpoint" not in str(caught.value)


def test_a_full_disk_at_a_resume_spares_the_configuration(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_until(tmp_path, digits, 2)
    before = (tmp_path / "config.yaml").read_bytes()
    trainer = Trainer(make_config(), tmp_path, data=digits, console=QUIET)

    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"config\.yaml could not be written because the disk is full"):
        trainer.fit()
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_setting_of_a_resume_holds_even_if_that_is_killed_at_once(tmp_path: Path, digits: ImageData) -> None:
    fit_until(tmp_path, digits, 2)
    fit_until(tmp_path, digits, 0, optimizer={"lr": 0.01})
    (tmp_path / "config.yaml").write_text("train: {epo")
    config = config_of(RunFolder(tmp_path))
    assert config == replace(make_config(), model=config.model, optimizer=replace(config.optimizer, lr=0.01))
    assert config_of(RunFolder(tmp_path), ["--optimizer.lr", "0.3"]).optimizer.lr == 0.3


def test_an_incomplete_configuration_is_refused_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    text = make_config().to_yaml()
    (tmp_path / "config.yaml").write_text(text)
    assert config_of(RunFolder(tmp_path)) == make_config()
    for end in range(10, len(text) - 30, 97):
        (tmp_path / "config.yaml").write_text(text[:end])
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            config_of(RunFolder(tmp_path))


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(tmp_path: Path, digits: ImageData) -> None:
    fit_until(tmp_path, digits, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="restore the folder of checkpoints"):
        fit(tmp_path, digits)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="restore the folder of checkpoints"):
        fit(tmp_path, digits)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path, digits: ImageData) -> None:
    fit_until(tmp_path, digits, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    assert len(fit(tmp_path, digits).events) == 2


def test_what_was_done_is_safe_before_it_is_printed(tmp_path: Path, digits: ImageData) -> None:
    trainer = Trainer(make_config(), tmp_path, data=digits, console=QUIET)

    def line(text: str) -> None:
        if text.startswith("grew"):
            raise UnicodeEncodeError("latin-1", text, 0, 1, "no such letter")

    trainer.progress.line = line  # type: ignore[method-assign]
    with pytest.raises(UnicodeEncodeError):
        trainer.fit()
    assert checkpoints.load(tmp_path / "checkpoints" / "last.json").stage == "grown"


def test_fewer_epochs_than_are_done_are_refused(tmp_path: Path, digits: ImageData) -> None:
    fit_until(tmp_path, digits, 3)
    with pytest.raises(ConfigError, match=r"train\.epochs is 2, but 3 are trained"):
        Trainer(make_config(train={"epochs": 2}), tmp_path, data=digits, console=QUIET)


class Drawn(nn.Module):
    """Its weights and its shape come from NumPy and Python."""

    def __init__(self) -> None:
        super().__init__()
        self.width = random.randint(4, 400)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 10))
        self.scale = float(np.random.rand())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images) * self.scale
        return logits


def test_a_factory_that_draws_from_numpy_and_python_is_seeded(tmp_path: Path, digits: ImageData) -> None:
    parts: dict[str, Any] = {"model": {"name": f"{__name__}:Drawn"}, "train": {"epochs": 1}, "growth": {"method": None}}
    np.random.seed(5)
    random.seed(5)
    expected = (np.random.rand(), random.random())
    np.random.seed(5)
    random.seed(5)
    first = Trainer(make_config(**parts), tmp_path / "a", data=digits, console=QUIET)
    assert (np.random.rand(), random.random()) == expected
    second = fit(tmp_path / "b", digits, **parts)
    other = Trainer(make_config(**parts | {"train": {"seed": 1}}), tmp_path / "c", data=digits, console=QUIET)
    assert (first.model.width, first.model.scale) == (second.model.width, second.model.scale)
    assert first.model.scale != other.model.scale
    assert_equal_weights(load_model(rungs(tmp_path / "b" / "ladder")[0].path), second.model)


class Odd(nn.Module):
    def __init__(self, kind: str, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.kind = kind
        self.net = nn.Sequential(nn.Conv2d(channels, 4, 8), nn.Flatten(), nn.Linear(4, classes))

    def forward(self, images: Tensor) -> Any:
        logits = self.net(images)
        return {"tuple": (logits, logits), "flat": logits[:, 0]}.get(self.kind, logits)


def normed(size: int) -> nn.Module:
    """A batch norm over size × size values of each image's channels."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(size * size, 10))


def test_batches_of_one_image_are_refused_before_a_batch_norm_over_one_value(tmp_path: Path, digits: ImageData) -> None:
    few = replace(digits, train_images=digits.train_images[:4], train_labels=digits.train_labels[:4])
    config = make_config(train={"epochs": 1, "batch_size": 1}, growth={"method": None})
    with pytest.raises(ConfigError, match="batch_size of 1 cannot train the batch norm 1 over one value"):
        Trainer(config, tmp_path / "no", data=few, model=normed(1), console=QUIET)
    assert not (tmp_path / "no").exists()
    frozen = normed(1)
    frozen[1].eval()
    frozen.train = lambda mode=True: frozen  # type: ignore[method-assign]
    for name, model in {"frozen": frozen, "many": normed(2)}.items():
        assert Trainer(config, tmp_path / name, data=few, model=model, console=QUIET).fit().phases
    config = make_config(train={"epochs": 1, "batch_size": 3}, growth={"method": None})
    assert Trainer(config, tmp_path / "three", data=few, model=normed(1), console=QUIET).fit().phases


@pytest.mark.parametrize("method", [None, "random"])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Odd("tuple"), "returns tuple for 2 images of 10 classes"),
        (Odd("flat"), r"returns \(2,\) for 2 images"),
        (Odd("logits", classes=9), r"returns \(2, 9\) for 2 images of 10 classes"),
        (Odd("logits", channels=3), r"cannot take images of shape \(1, 8, 8\)"),
    ],
)
def test_a_model_that_does_not_fit_the_images_is_refused_at_once(
    tmp_path: Path, digits: ImageData, model: nn.Module, sentence: str, method: str | None
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        Trainer(make_config(growth={"method": method}), tmp_path, data=digits, model=model, console=QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"model": {"kwargs": {"num_classes": 3}}}, "for 2 images of 10 classes"),
        ({"growth": {"method": "net2net", "kwargs": {"asymmetry": "abc"}}}, "does not suit the method net2net"),
        ({"growth": {"method": "splitting", "kwargs": {"iterations": 2.5}}}, "does not suit the method splitting"),
        ({"growth": {"method": "orthogonal", "kwargs": {"criterion": "taste"}}}, "does not suit the method orthogonal"),
    ],
)
def test_settings_are_checked_before_anything_is_trained(
    tmp_path: Path, digits: ImageData, parts: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Trainer(make_config(**parts), tmp_path, data=digits, console=QUIET)


def test_a_gpu_that_is_not_there(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU here: give auto or cpu"):
        Trainer(make_config(train={"device": "cuda"}), tmp_path, data=digits, console=QUIET)
