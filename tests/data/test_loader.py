from dataclasses import replace

import pytest
import torch
from torch import Tensor

from auxin.data import ImageData, Loader
from auxin.data.dataset import channel_statistics
from auxin.errors import ConfigError


def make(
    num_images: int = 50, channels: int = 3, size: int = 16, classes: tuple[str, ...] = ("cat", "dog")
) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, channels, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num_images)  # the label tells which image it is
    mean, std = channel_statistics(images)
    return ImageData(images, labels, images[:10], labels[:10], images[:0], labels[:0], classes, mean, std)


def batches(loader: Loader) -> list[tuple[Tensor, Tensor]]:
    return list(loader)


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True)
    )


def test_an_epoch_visits_every_image_once_in_a_new_order() -> None:
    loader = Loader(make(), batch_size=16)
    first, second = batches(loader), batches(loader)
    assert [len(labels) for _, labels in first] == [16, 16, 16, 2] and len(loader) == 4
    orders = [torch.cat([labels for _, labels in epoch]).tolist() for epoch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def test_seed_and_epoch_decide_the_batches() -> None:
    data = make()
    loader = Loader(data, batch_size=16, seed=3, cutout=4)
    history = [batches(loader) for _ in range(3)]
    resumed = Loader(data, batch_size=16, seed=3, cutout=4)
    resumed.set_epoch(2)
    assert same(batches(resumed), history[2])
    assert resumed.epoch == 3
    assert not same(batches(Loader(data, batch_size=16, seed=4, cutout=4)), history[0])
    assert not same(history[0], history[1])
    assert not same(batches(Loader(data, batch_size=16, seed=4, cutout=4)), history[1])


def test_a_pass_that_stops_early_stays_in_its_epoch() -> None:
    loader = Loader(make(), batch_size=16)
    first = next(iter(loader))
    assert same([next(iter(loader))], [first])
    assert loader.epoch == 0


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(Loader(make(), batch_size=16, cutout=3))
    assert torch.equal(torch.rand(3), expected)


def test_augmented_images_are_windows_of_the_padded_originals() -> None:
    data = make(num_images=30, size=8)
    images, labels = next(iter(Loader(data, batch_size=30, padding=2)))
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (data.mean, data.std))
    restored = (images * std + mean).round().to(torch.uint8)
    shifts, mirrored = set(), 0
    for image, label in zip(restored, labels, strict=True):
        padded = torch.nn.functional.pad(data.train_images[label], (2, 2, 2, 2))
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(image.flip(2) if flip else image, padded[:, top : top + 8, left : left + 8])
        ]
        assert len(matches) == 1
        shifts.add(matches[0][:2])
        mirrored += matches[0][2]
    assert len(shifts) > 10
    assert 5 < mirrored < 25


def test_draws_are_uniform() -> None:
    loader = Loader(make(num_images=20_000, size=4), padding=1, batch_size=20_000)
    draws = loader._draw(torch.Generator().manual_seed(0))
    for row, limit in zip(draws, (3, 3, 2, 4, 4), strict=True):
        counts = torch.bincount(row, minlength=limit)
        assert len(counts) == limit
        assert (counts / len(row) - 1 / limit).abs().max() < 0.02


def test_evaluation_is_plain_normalisation_in_order() -> None:
    data = make()
    loader = Loader(data, "val", batch_size=4)
    images = torch.cat([images for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    assert torch.equal(labels, data.val_labels)
    assert (images - (data.val_images / 255 - mean) / std).abs().max() < 1e-5
    assert same(batches(loader), batches(loader))


def test_normalised_training_images_have_mean_0_and_std_1() -> None:
    loader = Loader(make(num_images=200), augment=False, batch_size=200)
    images, _ = next(iter(loader))
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (images.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_drop_last_dtype_and_layout() -> None:
    loader = Loader(make(), batch_size=16, drop_last=True, dtype=torch.bfloat16, channels_last=True)
    made = batches(loader)
    assert [len(labels) for _, labels in made] == [16, 16, 16] and len(loader) == 3
    assert all(images.dtype == torch.bfloat16 for images, _ in made)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in made)
    plain = batches(Loader(make(), batch_size=16, drop_last=True))
    assert all(torch.equal(a.bfloat16(), b) for (a, _), (b, _) in zip(plain, made, strict=True))


def test_flip_is_for_colour_sets_that_are_not_characters() -> None:
    digits = tuple("0123456789")
    assert Loader(make()).flip
    assert not Loader(make(channels=1)).flip
    assert not Loader(make(classes=digits)).flip
    assert Loader(make(classes=digits), flip=True).flip


def test_default_padding_is_an_eighth() -> None:
    assert Loader(make(size=32)).padding == 4
    assert Loader(make(size=8)).padding == 1
    assert Loader(make(size=4)).padding == 0


def test_reflect_padding_shows_no_black_border() -> None:
    data = make()
    white = replace(data, train_images=torch.full_like(data.train_images, 255), mean=(0.0,) * 3, std=(1.0,) * 3)
    reflected = torch.cat([images for images, _ in Loader(white, padding=4, padding_mode="reflect")])
    padded = torch.cat([images for images, _ in Loader(white, padding=4)])
    assert reflected.min() == 1 and padded.min() == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch size"),
        ({"padding": 16}, "padding"),
        ({"padding_mode": "circular"}, "zeros or reflect"),
        ({"cutout": -1}, "Cutout"),
        ({"dtype": torch.int64}, "floating point"),
        ({"split": "test"}, "test part holds no image"),
        ({"batch_size": 51, "drop_last": True}, "turn drop_last off"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Loader(make(), **settings)
