import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from auxin.data import load
from auxin.data.cache import cache_folder, cache_name, read, write
from auxin.data.dataset import Decoded
from auxin.data.digits import Digits


def example() -> Decoded:
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).to(torch.uint8)
    return Decoded(
        splits={"train": (images, torch.tensor([1, 0])), "test": (images[:0], torch.empty(0, dtype=torch.int64))},
        classes=("a", "é"),
        facts={"formats": {"PNG": 2}},
        notes=("one",),
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.safetensors"
    write(path, example())
    found = read(path)
    assert found is not None
    assert found.classes == ("a", "é") and found.notes == ("one",) and found.facts == {"formats": {"PNG": 2}}
    for name, (images, labels) in example().splits.items():
        assert torch.equal(found.splits[name][0], images) and torch.equal(found.splits[name][1], labels)
    assert [file.name for file in path.parent.iterdir()] == ["file.safetensors"]


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def foreign(_: bytes) -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "damage",
    [flip_last_byte, foreign, lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"x" * 100],
)
def test_a_damaged_file_is_said_and_not_used(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "file.safetensors"
    write(path, example())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged .* decoding again"):
        assert read(path) is None


def test_a_missing_file_is_nothing_to_say(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    assert read(tmp_path / "none") is None
    assert not recwarn.list


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    decode = Digits.decode

    def counted(self: Digits) -> Decoded:
        calls.append(None)
        return decode(self)

    monkeypatch.setattr(Digits, "decode", counted)
    return calls


def test_images_are_decoded_once_and_again_after_damage(monkeypatch: pytest.MonkeyPatch, own_caches: Path) -> None:
    calls = count_decodes(monkeypatch)
    first, second = load(), load()
    assert len(calls) == 1
    assert torch.equal(first.train_images, second.train_images) and first.description == second.description
    (file,) = own_caches.iterdir()
    file.write_bytes(flip_last_byte(file.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        third = load()
    assert len(calls) == 2
    assert torch.equal(first.train_images, third.train_images)
    load()
    assert len(calls) == 2
    load(image_size=9)
    load(cache=False)
    assert len(calls) == 4 and len(list(own_caches.iterdir())) == 2


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be cached"):
        data = load(cache_dir=tmp_path / "file" / "folder")
    assert len(data.train_labels) == 1294


def test_a_full_disk_only_warns_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("auxin.data.cache.save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        load(cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUXIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AUXIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "auxin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "auxin"


def test_names_depend_on_the_fingerprint_only() -> None:
    assert cache_name(["a", 1]) == cache_name(["a", 1]) != cache_name(["a", 2])
