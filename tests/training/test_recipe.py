"""The parts of a published recipe: Adam, a rate that falls on plateaus, an L1 penalty; and an interrupted run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from auxin.data import ImageData, Loader
from auxin.errors import ConfigError
from auxin.models import build
from auxin.training import RunConfig, Trainer, load_config
from auxin.training.config import ScheduleConfig
from auxin.training.metrics import read_rows
from auxin.training.schedules import Plateau, make_schedule
from tests.training.test_trainer import QUIET, assert_equal_weights, fit, fit_until, make_config

PAPER = Path(__file__).parents[2] / "experiments" / "secnn2024" / "paper.yaml"


@pytest.mark.parametrize(("factor", "patience", "floor"), [(0.5, 0, 0.0), (0.1, 2, 0.05), (0.5, 4, 0.0)])
def test_plateau_is_torchs(factor: float, patience: int, floor: float) -> None:
    generator = torch.Generator().manual_seed(3)
    losses = (1 + 0.3 * torch.randn(60, generator=generator) - torch.arange(60) / 60).tolist()
    losses[7:9] = [math.nan, math.inf]
    losses[9] = min(losses[:7]) * (1 - 5e-5)  # lower, but by less than the threshold
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = ReduceLROnPlateau(optimizer, factor=factor, patience=patience, min_lr=floor, eps=0)
    plateau = Plateau(factor, patience, floor)
    for loss in losses:
        reference.step(loss)
        plateau.update(loss)
        assert plateau.level == optimizer.param_groups[0]["lr"]
    assert plateau.level < 1


def test_the_state_of_a_plateau_is_json_and_complete() -> None:
    first = Plateau(0.5, 1)
    for loss in (1.0, 0.5, 0.7):
        first.update(loss)
    second = Plateau(0.5, 1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second == first
    first.update(0.6)
    assert (first.level, first.bad_epochs) == (0.5, 0)
    first.restart()
    assert first == Plateau(0.5, 1)


def test_the_level_scales_what_warmup_leads_to() -> None:
    schedule = make_schedule(ScheduleConfig(name="plateau", warmup=2), 10, level=0.25)
    assert [schedule(t) for t in (0, 1, 2, 9)] == pytest.approx([0, 0.125, 0.25, 0.25])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedule.factor", "1"], "between 0 and 1"),
        (["--schedule.patience", "-1"], "0 or more"),
        (["--train.l1", "-1"], "0 or more"),
    ],
)
def test_mistakes(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(arguments)


@pytest.mark.parametrize("l1", [0.0, 1e-2])
def test_adam_with_both_penalties_is_the_plain_loop(tmp_path: Path, digits: ImageData, l1: float) -> None:
    config = make_config(
        growth={"method": None},
        optimizer={"name": "adam", "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-2, "weight_decay": 0.01},
        train={"epochs": 1, "l1": l1, "channels_last": False},
        schedule={"name": "constant"},
    )
    trainer = Trainer(config, tmp_path, data=digits, console=QUIET)
    model = build("small_cnn", num_classes=10, in_channels=1)
    model.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.01)
    losses = []
    for images, labels in Loader(digits, "train", batch_size=256, seed=0, drop_last=True):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        penalty = sum(parameter.abs().sum() for parameter in model.parameters())
        (loss + l1 * penalty).backward()
        optimizer.step()
        losses.append(loss.item())
    trainer.fit()
    assert type(trainer.optimizer) is torch.optim.Adam
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)  # without the penalty


RECIPE: dict[str, Any] = {
    "optimizer": {"name": "adam", "lr": 0.05},
    "schedule": {"name": "plateau", "factor": 0.5, "patience": 0},
    "train": {"epochs": 6, "l1": 1e-3},
    "growth": {"every": 3, "times": 1},
}


@pytest.mark.parametrize("after_growth", ["keep", "restart"])
@pytest.mark.parametrize("epoch", [2, 3, 5])
def test_a_resumed_run_ends_bit_equal(tmp_path: Path, digits: ImageData, epoch: int, after_growth: str) -> None:
    parts = {**RECIPE, "schedule": {**RECIPE["schedule"], "after_growth": after_growth}}
    whole = fit(tmp_path / "whole", digits, **parts)
    fit_until(tmp_path / "cut", digits, epoch, **parts)
    resumed = fit(tmp_path / "cut", digits, **parts)
    assert_equal_weights(whole.model, resumed.model)
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    assert [row["lr"] for row in rows[0]] == [row["lr"] for row in rows[1]]


def test_the_rate_falls_after_an_epoch_that_is_not_better_and_growth_may_bring_it_back(
    tmp_path: Path, digits: ImageData
) -> None:
    for after_growth in ("keep", "restart"):
        parts = {**RECIPE, "schedule": {**RECIPE["schedule"], "after_growth": after_growth}}
        # A rate so high that the loss rises: the rate must fall before the event after epoch 3.
        fit(tmp_path / after_growth, digits, **{**parts, "optimizer": {"name": "sgd", "lr": 2.0}})
    for after_growth in ("keep", "restart"):
        rows = read_rows(tmp_path / after_growth / "metrics.jsonl")
        plateau = Plateau(0.5, 0)
        for epoch, row in enumerate(rows):
            assert row["lr"] == 2.0 * plateau.level
            plateau.update(row["val_loss"])
            if epoch == 2:
                assert plateau.level < 1
                if after_growth == "restart":
                    plateau.restart()


@pytest.mark.parametrize(("name", "kwargs"), [("secnn", {}), ("vit", {"dim": 12, "depth": 1, "heads": 3})])
def test_models_of_one_image_size_take_it_from_the_images(
    tmp_path: Path, digits: ImageData, name: str, kwargs: dict
) -> None:
    trainer = fit(
        tmp_path, digits, model={"name": name, "kwargs": kwargs}, train={"epochs": 2}, growth={"every": 1, "times": 1}
    )
    assert trainer.config.model.kwargs["image_size"] == 8
    assert len(trainer.events) == 1


@pytest.mark.skipif(not PAPER.exists(), reason="the experiments folder is not part of an installed package")
def test_the_published_recipe_of_secnn_is_what_the_file_says() -> None:
    config: RunConfig = load_config(["--config", str(PAPER)])
    model = build(config.model.name, **config.model.kwargs)
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_024
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adam", 2e-3, 0)
    assert (config.schedule.name, config.schedule.factor, config.schedule.patience) == ("plateau", 0.5, 15)
    assert (config.train.epochs, config.train.batch_size, config.train.l1) == (300, 512, 1e-5)
    assert (config.data.crop, config.data.flip, config.data.cutout, config.data.val_fraction) == (0, True, 0, 0.1)
