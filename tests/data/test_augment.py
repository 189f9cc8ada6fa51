import numpy as np
import pytest
import torch

from auxin.data.augment import crop_flip, cutout_, normalise


def reference_crop_flip(image: np.ndarray, top: int, left: int, flip: bool, padding: int, mode: str) -> np.ndarray:
    """One image, (C, H, W), in plain numpy."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=mode)
    window = padded[:, top : top + height, left : left + width]
    return window[:, :, ::-1] if flip else window


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize(("size", "padding"), [((32, 32), 4), ((8, 8), 1), ((7, 12), 6), ((5, 4), 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_equals_one_image_at_a_time(
    reflect: bool, size: tuple[int, int], padding: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, channels, *size), dtype=torch.uint8, generator=generator)
    top, left = torch.randint(0, 2 * padding + 1, (2, 64), generator=generator)
    flip = torch.randint(0, 2, (64,), generator=generator)
    result = crop_flip(images, top, left, flip, padding=padding, reflect=reflect)
    mode = "reflect" if reflect else "constant"
    for index in range(64):
        expected = reference_crop_flip(
            images[index].numpy(), int(top[index]), int(left[index]), bool(flip[index]), padding, mode
        )
        np.testing.assert_array_equal(result[index].numpy(), expected)


def test_crop_flip_reads_any_memory_layout() -> None:
    images = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8)
    draws = torch.randint(0, 3, (8,)), torch.randint(0, 3, (8,)), torch.randint(0, 2, (8,))
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(crop_flip(strided, *draws, padding=1), crop_flip(images, *draws, padding=1))


def test_without_flip_or_padding_nothing_happens() -> None:
    images = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8)
    zeros = torch.zeros(8, dtype=torch.int64)
    assert torch.equal(crop_flip(images, zeros, zeros, None, padding=0), images)
    assert torch.equal(crop_flip(images, zeros + 2, zeros + 2, None, padding=2), images)


def test_normalise() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 61.0, 62.0])
    expected = (images.double() - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    result = normalise(images, mean.view(3, 1, 1), 1 / std.view(3, 1, 1))
    assert (result.double() - expected).abs().max() < 1e-6


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_blanks_the_square_clipped_at_the_border(size: int) -> None:
    images = torch.ones(6, 2, 7, 9)
    rows, columns = torch.tensor([0, 3, 6, 0, 5, 2]), torch.tensor([0, 4, 8, 8, 1, 7])
    result = cutout_(images, rows, columns, size)
    for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        expected = torch.ones(7, 9)
        top, left = row - size // 2, column - size // 2
        expected[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
        assert torch.equal(result[index], expected.expand(2, 7, 9))
