import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import auxin
from auxin.budgets import parse_cap
from auxin.data import ImageData
from auxin.errors import ConfigError
from auxin.models import build
from auxin.training import Result, RunConfig, Trainer
from auxin.training.config import TargetConfig
from auxin.training.target import cap_of, is_full
from tests.training.test_trainer import QUIET, assert_equal_weights, fit, fit_until, make_config

GROWTH = {"every": 1, "times": 1, "ratio": 0.5}


def run(folder: Path, data: ImageData, **parts: dict[str, Any]) -> tuple[Result, str]:
    text = io.StringIO()
    result = Trainer(make_config(growth=GROWTH, **parts), folder, data=data, console=Console(file=text)).fit()
    return result, text.getvalue()


def test_several_caps_hold_together() -> None:
    cap = parse_cap("params<=900, flops<=30k")
    images = auxin.trace(build("small_cnn"), torch.zeros(1, 1, 8, 8))
    units = {group.name: 50 for group in images.growable()}
    clipped = cap.clip(images, units)
    sizes = {name: images[name].size + by for name, by in clipped.items()}
    assert images.num_parameters(sizes) <= 900
    assert images.flops(sizes) <= 30_000
    alone = {name: images[name].size + by for name, by in parse_cap("params<=900").clip(images, units).items()}
    assert images.flops(alone) > 30_000, "the second cap decides here, or the test shows nothing"
    with pytest.raises(ConfigError, match="lots"):
        parse_cap("params<=900, lots")


def test_a_target_joins_the_cap_of_growth() -> None:
    assert cap_of(None, TargetConfig(accuracy=0.5)) is None
    assert cap_of("params<=1k", TargetConfig(params=500, flops="20M")) == "params<=1k, params<=500, flops<=20000000"


@pytest.mark.parametrize("name", ["params", "flops"])
def test_growth_ends_at_a_size_and_the_last_event_is_shrunk_to_fit(
    tmp_path: Path, digits: ImageData, name: str
) -> None:
    limit = {"params": 1000, "flops": 40_000}[name]
    result, text = run(tmp_path, digits, target={name: limit}, train={"epochs": 6})
    sizes = [getattr(phase, "parameters" if name == "params" else "flops") for phase in result.phases]
    assert len(sizes) == 3, "growth.times does not limit a run with a target"
    assert 0.85 * limit <= sizes[-1] <= limit
    assert result.phases[-1].last_epoch == 6
    assert result.phases[-1].first_epoch < 5, "the epochs left are spent at the target"
    last = result.decisions[-1]
    assert f"{name}<={limit}" in last["reason"]
    assert last["epoch"] == result.events[-1]["epoch"]
    assert text.count("no growth") == 1
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert lines == result.decisions


def test_growth_ends_once_accurate_enough(tmp_path: Path, digits: ImageData) -> None:
    result, text = run(tmp_path, digits, target={"accuracy": 0.15}, train={"epochs": 5})
    reached = next(index for index, value in enumerate(_accuracies(tmp_path)) if value >= 0.15)
    assert 0 < reached < 4, "the accuracy of this test must be reached on the way"
    assert [event["epoch"] for event in result.events] == list(range(reached))
    assert result.decisions[-1]["epoch"] == reached
    assert f"no growth, validation accuracy {_accuracies(tmp_path)[reached]:.2%} reached" in text


def _accuracies(folder: Path) -> list[float]:
    return [json.loads(line)["val_accuracy"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_target_that_is_missed_is_said(tmp_path: Path, digits: ImageData) -> None:
    result, text = run(tmp_path, digits, target={"params": "1M", "accuracy": 1.0}, train={"epochs": 2})
    assert "ended before its target (params 808 of 1,000,000, accuracy" in result.decisions[-1]["reason"]
    assert "ended before its target" in text


def test_a_cap_without_a_target_says_when_it_is_full(tmp_path: Path, digits: ImageData) -> None:
    trainer = Trainer(make_config(growth={**GROWTH, "until": "params<=400"}), tmp_path, data=digits, console=QUIET)
    assert trainer.grower is not None
    assert is_full(trainer.grower)
    result = trainer.fit()
    assert "fill the cap params<=400" in result.decisions[0]["reason"]
    assert len(result.decisions) == 1
    assert result.events == []


def test_a_resumed_run_keeps_its_target(tmp_path: Path, digits: ImageData) -> None:
    parts: dict[str, Any] = {"growth": GROWTH, "target": {"params": 1000}, "train": {"epochs": 6}}
    whole = fit(tmp_path / "whole", digits, **parts)
    fit_until(tmp_path / "cut", digits, 4, **parts)
    resumed = fit(tmp_path / "cut", digits, **parts)
    assert_equal_weights(whole.model, resumed.model)
    assert resumed.decisions == whole.decisions
    assert len(whole.decisions) == 1


def test_a_resume_may_give_a_larger_target(tmp_path: Path, digits: ImageData) -> None:
    fit_until(tmp_path, digits, 3, growth=GROWTH, target={"params": 700}, train={"epochs": 6})
    trainer = fit(tmp_path, digits, growth=GROWTH, target={"params": 2000}, train={"epochs": 6})
    assert 1500 < sum(p.numel() for p in trainer.model.parameters()) <= 2000


@pytest.mark.parametrize(
    ("target", "growth", "words"),
    [
        ({"params": 100}, {}, "the model begins with 398"),
        ({"flops": 100}, {}, "target.flops is 100"),
        ({"params": 1000}, {"method": None}, "needs growth"),
    ],
)
def test_targets_that_cannot_be(
    tmp_path: Path, digits: ImageData, target: dict[str, Any], growth: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Trainer(make_config(target=target, growth=growth), tmp_path, data=digits, console=QUIET)


@pytest.mark.parametrize("target", [{"accuracy": 90}, {"accuracy": 0}, {"params": 0}, {"params": "lots"}])
def test_targets_that_are_no_targets(target: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RunConfig.from_dict({"target": target})


def test_sizes_take_suffixes() -> None:
    target = RunConfig.from_dict({"target": {"params": "100k", "flops": "20M"}}).target
    assert (target.params, target.flops, target.given) == (100_000, 20_000_000, True)
    assert not TargetConfig().given
