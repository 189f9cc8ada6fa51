"""What to read of a set, from the configuration and the command line, on local files laid out as CIFAR-100 is."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from auxin.cli import main
from auxin.errors import ConfigError
from auxin.training import RunConfig, load_config
from auxin.training.config import DataConfig
from auxin.training.images import load_images
from tests.data.conftest import random_image


@pytest.fixture
def cifar100(write_parquet: Callable[..., Path]) -> str:
    rng = np.random.default_rng(0)
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=[f"fine{index}" for index in range(100)]),
            "coarse_label": datasets.ClassLabel(names=[f"coarse{index}" for index in range(20)]),
        }
    )
    train = {
        "img": [random_image(rng) for _ in range(200)],
        "fine_label": [index % 100 for index in range(200)],
        "coarse_label": [index % 20 for index in range(200)],
    }
    test = {key: values[:20] for key, values in train.items()}
    return str(write_parquet({"train": train, "test": test}, features))


def test_the_command_line_learns_coarse_labels_from_small_grey_images(
    cifar100: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "coarse.yaml"
    config.write_text(
        "model: {name: small_cnn}\ngrowth: {method: null}\n"
        "train: {epochs: 1, batch_size: 50, precision: 32-true, threads: 1}\n"
    )
    words = ["--data.label_column", "coarse_label", "--data.image_size", "[8, 10]", "--data.channels", "1"]
    assert main(["train", str(config), "--data", cifar100, *words]) == 0
    result = json.loads((tmp_path / "runs" / "coarse-1" / "result.json").read_text())
    assert result["config"]["model"]["kwargs"] == {"num_classes": 20, "in_channels": 1}
    assert result["data"]["label_column"] == "coarse_label"
    assert result["config"]["data"]["image_size"] == [8, 10]


def test_every_option_reaches_the_images(cifar100: str) -> None:
    fine = load_images(DataConfig(cifar100))
    assert (fine.num_classes, fine.channels, fine.image_size) == (100, 3, (32, 32))
    words = ["--data.label_column", "coarse_label", "--data.image_column", "img"]
    config = load_config(["--data.source", cifar100, *words, "--data.image_size", "16", "--data.channels", "1"])
    coarse = load_images(config.data)
    assert (coarse.num_classes, coarse.channels, coarse.image_size) == (20, 1, (16, 16))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.label_column", "colour"], "label_column 'colour' does not exist: choose one of img, fine_label"),
        (["--data.image_column", "picture"], "image_column 'picture' does not exist"),
        (["--data.image_column", "fine_label"], "does not hold encoded images"),
        (["--data.label_column", "img"], "holds no class labels"),
        (["--data.image_size", "0"], "data.image_size is 0: give one side"),
        (["--data.image_size", "[4, 4, 4]"], "give one side in pixels"),
        (["--data.image_size", "-3"], "give one side in pixels"),
        (["--data.channels", "4"], "data.channels is 4: give 1"),
        (["--data", "digits", "--data.label_column", "label"], "digits have no columns"),
    ],
)
def test_an_option_that_does_not_fit_is_one_sentence(
    cifar100: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("model: {name: small_cnn}\ntrain: {epochs: 1, threads: 1}\n")
    assert main(["train", "run.yaml", "--data", cifar100, *words]) != 0
    error = capsys.readouterr().err
    assert says in " ".join(error.split()) and "Traceback" not in error
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_configuration_refuses_what_no_source_could_do() -> None:
    with pytest.raises(ConfigError, match="give one side"):
        DataConfig(image_size=[8])
