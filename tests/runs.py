"""Two small finished runs on the digits, for what reads run folders: import the fixtures into a conftest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from auxin.training import RunConfig, Trainer


def make_run(folder: Path, **growth: Any) -> Path:
    config = {
        "name": folder.name,
        "model": {"name": "small_cnn"},
        "train": {"epochs": 3, "batch_size": 256, "precision": "32-true", "threads": 1},
        "growth": growth,
    }
    Trainer(RunConfig.from_dict(config), folder, console=Console(quiet=True)).fit()
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def grown_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two events, each with a refinement; treat it as read-only."""
    folder = tmp_path_factory.mktemp("runs") / "grown-1"
    return make_run(folder, every=1, times=2, ratio=0.5, similarity={"iterations": 3, "neurons": "all"})


@pytest.fixture(scope="session")
def fixed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No event at all; treat it as read-only."""
    return make_run(tmp_path_factory.mktemp("runs") / "fixed-1", method=None)
