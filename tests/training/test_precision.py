from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from auxin.data import ImageData
from auxin.training import RunConfig, Trainer
from auxin.training.begun import config_of
from auxin.training.config import TrainConfig
from auxin.training.precision import advice, multiplies_bf16, precision_of


def hardware_with(monkeypatch: pytest.MonkeyPatch, **flags: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"neon": True, "bf16": True}, "bf16-mixed"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_auto_takes_bf16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], chosen: str
) -> None:
    hardware_with(monkeypatch, **flags)
    assert precision_of(TrainConfig()) == chosen


def test_a_torch_that_does_not_know_its_processor_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bf16("cpu")


def test_a_gpu_is_asked_without_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not multiplies_bf16("auto")


def test_what_is_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware_with(monkeypatch)
    named = TrainConfig(precision="bf16-mixed")
    assert precision_of(named) == precision_of(named, begun="32-true") == "bf16-mixed"
    assert "emulated" in advice(named)
    hardware_with(monkeypatch, avx512_bf16=True)
    assert advice(named) == ""
    assert advice(TrainConfig(precision="32-true")) == ""


def test_a_run_keeps_what_it_began_with_on_other_hardware(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digits: ImageData
) -> None:
    parts: dict[str, Any] = {"model": {"name": "small_cnn"}, "growth": {"every": 1}}

    def train(epochs: int) -> Trainer:
        config = RunConfig.from_dict({**parts, "train": {"epochs": epochs, "batch_size": 256}})
        trainer = Trainer(config, tmp_path, data=digits, console=Console(quiet=True))
        trainer.fit()
        return trainer

    hardware_with(monkeypatch, avx512_bf16=True)
    assert train(1).config.train.precision == "bf16-mixed"
    (tmp_path / "result.json").unlink()
    hardware_with(monkeypatch)
    assert config_of(train(2).folder).train.precision == "bf16-mixed"
