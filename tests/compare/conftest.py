"""Specifications and results made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from auxin.training import Phase, Result, RunConfig
from auxin.training.growth import written_out

SPEC = {
    "name": "methods",
    "base": {
        "model": {"name": "small_cnn", "kwargs": {"width": 4}},
        "train": {"epochs": 2, "batch_size": 256, "precision": "32-true"},
        "growth": {"every": 1, "ratio": 0.5},
    },
    "rows": [
        {"label": "Random", "config": {"growth.method": "random"}},
        {"label": "Net2Net", "config": {"growth.method": "net2net"}, "baseline": "Random"},
    ],
    "seeds": [0],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes ``SPEC`` with changed keys; None leaves one out."""

    def function(file: str = "methods.yaml", **changes: object) -> Path:
        document = {key: value for key, value in (SPEC | changes).items() if value is not None}
        path = tmp_path / file
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return function


def make_result(config: RunConfig, test: float = 0.5, seconds: float = 10.0, flops: int = 2_000_000) -> Result:
    return Result(
        name=config.name,
        config=replace(config, growth=written_out(config.growth)).to_dict(),
        commit="0123456789abcdef",
        dirty=False,
        seed=config.train.seed,
        hardware={"processor": "Processor", "threads": 1, "gpus": []},
        versions={"torch": "2.13.0"},
        data={"origin": "somewhere", "notes": ["All images are JPEG."]},
        phases=[
            Phase(1, 1, 1000, flops, 0.25, test / 2, seconds / 4),
            Phase(2, 2, 2000, 2 * flops, 0.5, test, 3 * seconds / 4),
        ],
        events=[],
        widths={},
        seconds=seconds,
    )
