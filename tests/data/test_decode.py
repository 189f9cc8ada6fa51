import io

import numpy as np
import pytest
from PIL import Image

from auxin.data.decode import Header, _check_memory, common_size, decode, header, pixels
from auxin.errors import DataError

SIZE = (4, 6)


def encode(image: Image.Image, **options: object) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG"} | options)
    return {"bytes": buffer.getvalue(), "path": None}


def grey(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)


def colour(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def test_grey_and_colour_are_kept_as_they_are() -> None:
    np.testing.assert_array_equal(pixels(Image.fromarray(grey()), 1, SIZE)[..., 0], grey())
    np.testing.assert_array_equal(pixels(Image.fromarray(colour()), 3, SIZE), colour())
    np.testing.assert_array_equal(pixels(Image.fromarray(grey()), 3, SIZE), np.stack([grey()] * 3, axis=-1))


def test_palette_becomes_its_colours() -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(SIZE), mode="L").convert("P")
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(pixels(image, 3, SIZE), palette[np.asarray(image)])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new(mode, (SIZE[1], SIZE[0]), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert (pixels(image, 3 if mode == "RGBA" else 1, SIZE) == 255).all()
    opaque = Image.new(mode, (SIZE[1], SIZE[0]), (10, 10, 10, 255) if mode == "RGBA" else (10, 255))
    assert (pixels(opaque, 3, SIZE) == 10).all()


def test_16_bit_values_are_scaled_not_clipped() -> None:
    values = (grey().astype(np.uint16) * 257).astype(np.uint16)
    record = encode(Image.fromarray(values))
    assert header(record, "it").grey
    np.testing.assert_array_equal(decode([record], ["it"], 1, SIZE, title="")[0, 0].numpy(), grey())


def test_floating_point_pixels_are_refused() -> None:
    record = encode(Image.fromarray(grey().astype(np.float32)), format="TIFF")
    with pytest.raises(DataError, match=r"Image 3 cannot be decoded .*neither 8 nor 16 bits"):
        decode([record], ["Image 3"], 1, SIZE, title="")


def test_one_bit_images_are_black_and_white() -> None:
    image = Image.fromarray(grey() > 127)
    np.testing.assert_array_equal(pixels(image, 1, SIZE)[..., 0], np.where(grey() > 127, 255, 0))


def test_camera_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    record = encode(Image.fromarray(colour()), exif=exif)
    assert header(record, "it") == Header("PNG", False, (SIZE[1], SIZE[0]))
    turned = decode([record], ["it"], 3, (SIZE[1], SIZE[0]), title="")[0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(turned, np.rot90(colour(), -1))


def test_another_size_is_stretched() -> None:
    flat = Image.new("RGB", (50, 31), (9, 99, 199))
    assert (pixels(flat, 3, SIZE) == (9, 99, 199)).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_order_is_kept_over_many_chunks(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auxin.data.decode._num_threads", lambda size: threads)
    monkeypatch.setattr("auxin.data.decode.CHUNK", 7)
    records = [encode(Image.fromarray(colour(seed))) for seed in range(50)]
    images = decode(records, ["x"] * 50, 3, SIZE, title="").numpy()
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), np.stack([colour(seed) for seed in range(50)]))


def test_the_most_common_size_wins_then_the_smallest() -> None:
    def heads(*sizes: tuple[int, int]) -> list[Header]:
        return [Header("PNG", True, size) for size in sizes]

    assert common_size(heads((9, 9), (4, 4), (9, 9))) == (9, 9)
    assert common_size(heads((9, 9), (4, 4))) == (4, 4)


def test_more_than_the_memory_is_refused_beforehand() -> None:
    with pytest.raises(DataError, match="smaller image_size"):
        _check_memory(2**60, (4000, 3000))
