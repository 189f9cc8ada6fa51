"""Runs with the similarity constraint: from the command line, through kills, and the settings of a method."""

import json
from pathlib import Path
from typing import Any

import pytest

from auxin.cli import main
from auxin.data import ImageData
from auxin.errors import ConfigError
from auxin.methods import Firefly, Orthogonal
from auxin.training import Trainer
from tests.training.test_trainer import QUIET, assert_equal_weights, fit, fit_until, make_config

CONFIG = """
model: {name: small_cnn, kwargs: {width: 16}}
optimizer: {lr: 0.05}
train: {epochs: 4, batch_size: 32, precision: 32-true, threads: 1}
growth: {every: 2, ratio: 0.5}
"""


def test_firefly_with_the_constraint_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(CONFIG)
    words = ["--growth.method", "firefly", "--growth.similarity.iterations", "15"]
    assert main(["train", "digits.yaml", *words]) == 0
    result = json.loads(Path("runs/digits-1/result.json").read_text())
    (event,) = result["events"]
    assert event["method"] == "firefly" and event["parameters_after"] > event["parameters_before"]
    assert any(note.startswith("similarity: 15 iterations on 3 layers, new neurons, μ") for note in event["notes"])
    assert result["config"]["growth"]["similarity"]["iterations"] == 15
    assert [phase["last_epoch"] for phase in result["phases"]] == [2, 4]
    assert result["phases"][-1]["test_accuracy"] > 0.3  # it learns: chance is 0.1


ALL = {"neurons": "all", "weight_change": 0.1, "reestimate_norms": 2, "lr": 0.01}


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize(
    "growth",
    [
        {"method": "net2net", "similarity": ALL},
        {"method": "firefly", "similarity": {}},
        {"method": "orthogonal", "kwargs": {"criterion": "activation"}, "similarity": {"neurons": "new"}},
    ],
    ids=["net2net", "firefly", "orthogonal"],
)
def test_a_killed_run_with_the_constraint_ends_bit_equal(
    tmp_path: Path, digits: ImageData, growth: dict[str, Any], epoch: int
) -> None:
    parts: dict[str, Any] = {"growth": {**growth, "every": 1, "times": 2}, "train": {"epochs": 4}}
    whole = fit(tmp_path / "whole", digits, **parts)
    fit_until(tmp_path / "cut", digits, epoch, **parts)
    resumed = fit(tmp_path / "cut", digits, **parts)
    assert len(resumed.events) == 2
    assert [event.notes for event in resumed.events] == [event.notes for event in whole.events]
    assert all(any("similarity:" in note for note in event.notes) for event in resumed.events)
    assert_equal_weights(whole.model, resumed.model)
    for mine, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert bool((mine["momentum_buffer"] == theirs["momentum_buffer"]).all())


def test_settings_of_the_method_reach_it(tmp_path: Path, digits: ImageData) -> None:
    def method(**growth: Any) -> Any:
        return Trainer(make_config(growth=growth), tmp_path / "run", data=digits, console=QUIET).grower.method  # type: ignore[union-attr]

    assert method(method="orthogonal", kwargs={"criterion": "activation"}) == Orthogonal(criterion="activation")
    assert method(method="firefly", kwargs={"path_points": 3}) == Firefly(path_points=3)
    for kwargs, says in (({"colour": 1}, "does not suit the method firefly.*colour"), ({"path_points": 0}, "1 point")):
        with pytest.raises(ConfigError, match=says) as caught:
            method(method="firefly", kwargs=kwargs)
        assert "\n" not in str(caught.value)
