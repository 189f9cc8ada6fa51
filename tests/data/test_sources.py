import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from auxin.data import load
from auxin.errors import DataError
from tests.data.conftest import png, random_image

Write = Callable[..., Path]
REAL_CIFAR10 = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10"


def as_tensor(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def test_digits_are_embedded() -> None:
    data = load()
    assert (len(data.train_labels), len(data.val_labels), len(data.test_labels)) == (1294, 144, 359)
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert data.train_images.shape[1:] == (1, 8, 8) == (data.channels, *data.image_size)
    assert data.classes == tuple("0123456789")
    assert data.train_images.max() == 255
    assert any("held out as test (seed 0)" in note for note in data.description["notes"])


def test_digits_resized_and_coloured() -> None:
    data = load("digits", image_size=12, channels=3)
    assert data.train_images.shape[1:] == (3, 12, 12)


def test_parts_do_not_overlap_and_follow_the_seed() -> None:
    first, again, other = load(seed=1), load(seed=1), load(seed=2)
    assert torch.equal(first.test_images, again.test_images) and torch.equal(first.val_labels, again.val_labels)
    assert not torch.equal(first.test_images, other.test_images)
    rows = torch.cat([images for images, _ in map(first.part, ("train", "val", "test"))]).flatten(1)
    whole = load(val_fraction=0, test_fraction=0).train_images.flatten(1)
    assert sorted(map(bytes, rows.numpy())) == sorted(map(bytes, whole.numpy()))
    shares = torch.bincount(first.val_labels) / torch.bincount(first.train_labels)
    assert (shares - 1 / 9).abs().max() < 0.02


def test_statistics_are_those_of_the_train_part() -> None:
    data = load()
    values = data.train_images.double() / 255
    assert data.mean[0] == pytest.approx(values.mean().item(), abs=1e-12)
    assert data.std[0] == pytest.approx(values.std(correction=0).item(), abs=1e-12)


def test_cifar10_layout(write_parquet: Write) -> None:
    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird"]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    train = {"img": [random_image(rng) for _ in range(40)], "label": [index % 3 for index in range(40)]}
    test = {"img": [random_image(rng) for _ in range(6)], "label": [0, 1, 2, 2, 1, 0]}
    data = load(str(write_parquet({"train": train, "test": test}, features)))
    assert data.classes == tuple(names)
    assert (len(data.train_labels), len(data.val_labels)) == (36, 4)
    assert data.test_labels.tolist() == test["label"]
    assert torch.equal(data.test_images, torch.stack([as_tensor(image) for image in test["img"]]))
    assert data.description["formats"] == {"PNG": 46}
    assert data.description["splits"] == {"train": "train", "test": "test"}


def test_cifar100_layout_takes_fine_labels(write_parquet: Write) -> None:
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
    test = {key: values[:5] for key, values in train.items()}
    folder = str(write_parquet({"train": train, "test": test}, features))
    fine, coarse = load(folder), load(folder, label_column="coarse_label")
    assert fine.num_classes == 100 and fine.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert coarse.num_classes == 20 and coarse.classes[3] == "coarse3"
    assert torch.bincount(coarse.val_labels).tolist() == [1] * 20


def test_fashion_mnist_layout_is_grey(write_parquet: Write) -> None:
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    train = {"image": [random_image(rng, (28, 28), "L") for _ in range(30)], "label": [i % 10 for i in range(30)]}
    data = load(str(write_parquet({"train": train, "test": train}, features)), val_fraction=1 / 3)
    assert data.train_images.shape == (20, 1, 28, 28)
    assert torch.equal(data.test_images[7], as_tensor(train["image"][7]))
    colour = load(str(write_parquet({"train": train, "test": train}, features)), channels=3, val_fraction=0)
    assert torch.equal(colour.train_images[:, 2], colour.train_images[:, 0]) and colour.channels == 3
    assert len(colour.val_labels) == 0


def test_folder_of_class_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for index in range(10):
            size = (12, 10) if index else (20, 16)
            random_image(rng, size).save(tmp_path / "pets" / kind / f"{index}.png")
    data = load(str(tmp_path / "pets"), test_fraction=0.2)
    assert data.classes == ("cat", "dog")
    assert data.image_size == (12, 10)
    assert data.description["sizes"] == {"train": 14, "val": 2, "test": 4}
    assert torch.bincount(data.test_labels).tolist() == [2, 2]
    assert any("2 of 20 images were resized to 12×10" in note for note in data.description["notes"])
    assert load(str(tmp_path / "pets"), image_size=(6, 7)).image_size == (6, 7)


def test_validation_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("validation", 3), ("test", 4)):
        for kind in ("a", "b"):
            folder = tmp_path / "three" / split / kind
            folder.mkdir(parents=True)
            for index in range(number):
                random_image(rng, (8, 8)).save(folder / f"{index}.png")
    data = load(str(tmp_path / "three"))
    assert data.description["sizes"] == {"train": 12, "val": 6, "test": 8}
    assert any("own validation split" in note for note in data.description["notes"])


def test_without_test_split_validation_serves_as_test(write_parquet: Write) -> None:
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    part = {"image": [random_image(rng, (8, 8)) for _ in range(20)], "label": [0, 1] * 10}
    data = load(str(write_parquet({"train": part, "validation": part}, features)))
    assert data.description["sizes"] == {"train": 18, "val": 2, "test": 20}
    assert "Split 'validation' serves as test." in data.description["notes"]


@pytest.mark.parametrize(
    ("values", "feature", "classes", "labels"),
    [
        ([7, 3, 3, 7], datasets.Value("int64"), ("3", "7"), [1, 0, 0, 1]),
        (["10", "9", "9", "10"], datasets.Value("string"), ("9", "10"), [1, 0, 0, 1]),
        (["dog", "cat", "cat", "dog"], datasets.Value("string"), ("cat", "dog"), [1, 0, 0, 1]),
        ([True, False, False, True], datasets.Value("bool"), ("False", "True"), [1, 0, 0, 1]),
        ([2.0, 1.0, 1.0, 2.0], datasets.Value("float32"), ("1", "2"), [1, 0, 0, 1]),
    ],
)
def test_labels_become_0_to_k(
    write_parquet: Write, values: list, feature: object, classes: tuple, labels: list
) -> None:
    rng = np.random.default_rng(0)
    features = datasets.Features({"picture": datasets.Image(), "target": feature})
    part = {"picture": [random_image(rng, (4, 4)) for _ in values], "target": values}
    data = load(str(write_parquet({"train": part, "test": part}, features)), val_fraction=0)
    assert data.classes == classes
    assert data.test_labels.tolist() == labels


def test_rows_without_label_or_image_are_left_out_and_counted(write_parquet: Write) -> None:
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    train = {
        "image": [None, *(random_image(rng, (4, 4)) for _ in range(9))],
        "label": [0, 1, None, 0, 1, 0, 1, 0, 1, 0],
    }
    secret = {"image": [random_image(rng, (4, 4)) for _ in range(3)], "label": [-1, -1, -1]}
    data = load(str(write_parquet({"train": train, "test": secret}, features)), val_fraction=0, test_fraction=0.25)
    assert data.description["sizes"] == {"train": 6, "val": 0, "test": 2}
    assert any("2 of 10 rows of split 'train' lack" in note for note in data.description["notes"])
    assert any("3 of 3 rows of split 'test' lack" in note for note in data.description["notes"])


def test_encoded_bytes_without_an_image_type(write_parquet: Write) -> None:
    image = random_image(np.random.default_rng(0), (4, 4))
    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.Value("int32")})
    part = {"image": [png(image)] * 4, "label": [0, 1, 0, 1]}
    data = load(str(write_parquet({"train": part, "test": part}, features)), val_fraction=0)
    assert torch.equal(data.test_images[0], as_tensor(image))


def test_the_same_place_with_other_files_is_another_set(write_parquet: Write, own_caches: Path) -> None:
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    parts = [{"image": [random_image(rng, (4, 4)) for _ in range(8)], "label": [0, 1] * 4} for _ in range(2)]
    first = load(str(write_parquet({"train": parts[0]}, features)))
    second = load(str(write_parquet({"train": parts[1]}, features)))
    assert first.description["fingerprint"] != second.description["fingerprint"]
    assert not torch.equal(first.train_images, second.train_images)
    assert len(list(own_caches.iterdir())) == 2


def broken_folder(tmp_path: Path, write_parquet: Write, kind: str) -> str:
    rng = np.random.default_rng(0)
    images = [random_image(rng, (4, 4)) for _ in range(4)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("")
    elif kind == "text":
        write_parquet({"train": {"text": ["a"]}}, datasets.Features({"text": datasets.Value("string")}), kind)
    elif kind == "unlabelled":
        write_parquet({"train": {"image": images}}, datasets.Features({"image": datasets.Image()}), kind)
    elif kind == "one class":
        (folder / "a").mkdir(parents=True)
        images[0].save(folder / "a" / "only.png")
    elif kind == "no rows":
        write_parquet({"train": {"image": [], "label": []}}, datasets.Features(features), kind)
    elif kind == "secret":
        write_parquet({"train": {"image": images, "label": [-1] * 4}}, datasets.Features(features), kind)
    elif kind == "real":
        features["label"] = datasets.Value("float32")
        write_parquet({"train": {"image": images, "label": [0.5] * 4}}, datasets.Features(features), kind)
    elif kind == "damaged":
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            images[0].save(folder / name / "good.png")
        (folder / "a" / "bad.png").write_bytes(b"not an image")
    elif kind == "cut":
        (folder / "a").mkdir(parents=True)
        random_image(rng, (64, 64)).save(folder / "a" / "whole.png")
        whole = (folder / "a" / "whole.png").read_bytes()
        (folder / "a" / "half.png").write_bytes(whole[: len(whole) // 2])
        (folder / "b").mkdir()
        random_image(rng, (64, 64)).save(folder / "b" / "whole.png")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("missing", {}, "There is no folder"),
        ("file", {}, "is a file"),
        ("empty", {}, "cannot be read"),
        ("text", {}, "No column holds images .the columns are text."),
        ("unlabelled", {}, "No column holds labels"),
        ("one class", {}, "two classes at least"),
        ("no rows", {}, "holds no rows"),
        ("unlabelled", {"image_column": "img"}, "image_column 'img' does not exist: choose one of image"),
        ("secret", {}, "No image .* has a label"),
        ("real", {}, "no class labels but values such as 0.5"),
        ("damaged", {}, "bad.png. cannot be read as an image"),
        ("cut", {}, "half.png. cannot be decoded"),
    ],
)
def test_what_cannot_be_read_is_one_clear_sentence(
    tmp_path: Path, write_parquet: Write, kind: str, options: dict, says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load(broken_folder(tmp_path, write_parquet, kind), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val_fraction": 1.0}, "held-out fraction"),
        ({"test_fraction": -0.1}, "held-out fraction"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (3, 3, 3)}, "image_size"),
        ({"channels": 4}, "channels"),
        ({"label_column": "label"}, "digits have no columns"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load("digits", **options)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError, match="The hub cannot be reached to read 'someone/cifar10': check") as caught:
        load("someone/cifar10")
    assert "\n" not in str(caught.value)


def test_unknown_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError, match="There is no data set 'someone/cifar11' on the hub"):
        load("someone/cifar11")


def test_moving_to_a_device_keeps_everything_else() -> None:
    data = load()
    moved = data.to("meta")
    assert moved.device.type == "meta" and moved.test_images.shape == data.test_images.shape
    assert moved.mean == data.mean and moved.classes == data.classes


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason="the shared CIFAR-10 copy is not on this machine")
def test_the_real_cifar10() -> None:
    data = load(os.path.normpath(REAL_CIFAR10))
    assert data.description["sizes"] == {"train": 45_000, "val": 5_000, "test": 10_000}
    assert data.train_images.shape[1:] == (3, 32, 32)
    assert data.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert torch.bincount(data.train_labels).tolist() == [4500] * 10
    assert torch.bincount(data.val_labels).tolist() == [500] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert any("JPEG" in note for note in data.description["notes"])
