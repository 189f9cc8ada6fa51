import io
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has caches of its own, and never touches the user's."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "huggingface")
    monkeypatch.setenv("AUXIN_CACHE", str(folder / "auxin"))
    return folder / "auxin"


def random_image(rng: np.random.Generator, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    shape = size if mode == "L" else (*size, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Write splits of columns with the given features as a local data set, as the hub lays them out."""

    def write(splits: dict[str, dict[str, list]], features: datasets.Features, name: str = "set") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for split, columns in splits.items():
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        return folder

    return write
