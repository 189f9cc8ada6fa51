import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from auxin.errors import CheckpointError
from auxin.training import checkpoint as checkpoints
from auxin.training.checkpoint import Checkpoint
from auxin.training.config import OptimizerConfig
from auxin.training.optimizer import make_optimizer, restore, state_of


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 1, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()


def make_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int = 0) -> Checkpoint:
    return Checkpoint(
        config={"name": "x", "nested": {"list": [1, 2.5, None, True]}},
        epoch=epoch,
        stage="trained",
        model=model.state_dict(),
        optimizer=state_of(optimizer, model),
        history=[],
        grower={"waited": 3},
        metrics={"val_loss": 0.1 + 0.2, "bad": float("inf")},
        seconds=1.25,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = make_model()
    optimizer = make_optimizer(OptimizerConfig(), model)
    step(model, optimizer, 0)
    return checkpoints.save(make_checkpoint(model, optimizer), tmp_path / "last.json")


def tensor_file(manifest: Path) -> Path:
    return manifest.with_name(json.loads(manifest.read_text())["tensors"]["file"])


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(name="sgd", lr=0.1),
        OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, nesterov=False),
        OptimizerConfig(name="adamw", lr=0.01, betas=(0.8, 0.95)),
    ],
    ids=["momentum", "plain", "adamw"],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_resumed_optimizer_steps_bit_equal(tmp_path: Path, config: OptimizerConfig, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_model().to(memory_format=layout)
    optimizer = make_optimizer(config, model)
    for seed in range(3):
        step(model, optimizer, seed)
    checkpoints.save(make_checkpoint(model, optimizer), tmp_path / "last.json")

    loaded = checkpoints.load(tmp_path / "last.json")
    twin = make_model()
    twin.load_state_dict(dict(loaded.model))
    twin = twin.to(memory_format=layout)
    twin_optimizer = make_optimizer(config, twin)
    restore(twin_optimizer, twin, loaded.optimizer)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(twin, twin_optimizer, seed)

    assert twin_optimizer.param_groups[0].keys() == optimizer.param_groups[0].keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    first, second = state_of(optimizer, model), state_of(twin_optimizer, twin)
    assert first["state"].keys() == second["state"].keys()
    for name, entries in first["state"].items():
        for key, value in entries.items():
            other = second["state"][name][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, (name, key)


def test_everything_but_tensors_comes_back_equal(saved: Path) -> None:
    loaded = checkpoints.load(saved)
    assert loaded.config == {"name": "x", "nested": {"list": [1, 2.5, None, True]}}
    assert loaded.metrics == {"val_loss": 0.1 + 0.2, "bad": float("inf")}
    assert (loaded.epoch, loaded.stage, loaded.seconds, loaded.grower) == (0, "trained", 1.25, {"waited": 3})


def test_parameter_groups_keep_membership_and_order(tmp_path: Path) -> None:
    model = make_model()
    parameters = list(model.parameters())
    groups = [{"params": parameters[3:][::-1], "lr": 0.5}, {"params": parameters[:3], "weight_decay": 0.25}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    step(model, optimizer, 0)
    checkpoints.save(make_checkpoint(model, optimizer), tmp_path / "last.json")
    twin = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1, momentum=0.9)
    restore(twin, model, checkpoints.load(tmp_path / "last.json").optimizer)
    assert [[id(p) for p in group["params"]] for group in twin.param_groups] == [
        [id(p) for p in group["params"]] for group in optimizer.param_groups
    ]
    assert [(group["lr"], group["weight_decay"]) for group in twin.param_groups] == [(0.5, 0), (0.1, 0.25)]


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loaded = checkpoints.load(checkpoints.save(make_checkpoint(model, optimizer), tmp_path / "last.json"))
    assert torch.equal(loaded.model["0.weight"], loaded.model["1.weight"])


def test_a_save_leaves_one_pair_of_files(saved: Path) -> None:
    model = make_model()
    for epoch in range(1, 4):
        checkpoints.save(make_checkpoint(model, torch.optim.SGD(model.parameters(), lr=0.1), epoch), saved)
    assert sorted(saved.parent.iterdir()) == sorted([saved, tensor_file(saved)])
    assert checkpoints.load(saved).epoch == 3


def flip_a_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_the_layout_of_the_manifest_does_not_matter(saved: Path) -> None:
    saved.write_text(json.dumps(json.loads(saved.read_text())))
    assert checkpoints.load(saved).epoch == 0


def change_version(manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 7}))


def leave_out_the_tensor_file(manifest: Path) -> None:
    document = json.loads(manifest.read_text())
    del document["sha256"], document["tensors"]["file"]
    manifest.write_text(json.dumps(document | {"sha256": checkpoints._digest(document)}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensor bit": (lambda path: flip_a_bit(tensor_file(path), -3), "damaged"),
    "tensor header bit": (lambda path: flip_a_bit(tensor_file(path), 12), "damaged"),
    "tensors cut": (lambda path: os.truncate(tensor_file(path), 100), "truncated"),
    "tensors empty": (lambda path: os.truncate(tensor_file(path), 0), "truncated"),
    "tensors gone": (lambda path: tensor_file(path).unlink(), "lacks its tensor file"),
    "manifest cut": (lambda path: os.truncate(path, 200), "truncated"),
    "manifest empty": (lambda path: os.truncate(path, 0), "truncated"),
    "manifest number": (lambda path: path.write_text(path.read_text().replace("1.25", "1.26")), "damaged"),
    "manifest gone": (lambda path: path.unlink(), "no checkpoint"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "not JSON"),
    "foreign JSON": (lambda path: path.write_text('{"epoch": 3}'), "not an auxin checkpoint"),
    "JSON list": (lambda path: path.write_text("[1]"), "not an auxin checkpoint"),
    "version": (change_version, "version 7"),
    "no tensor file named": (leave_out_the_tensor_file, "incomplete: it has no 'file'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_with_one_sentence(saved: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(saved)
    with pytest.raises(CheckpointError, match=words) as caught:
        checkpoints.load(saved)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"format": "auxin-checkpoint"}, tmp_path / "last.json")
    with pytest.raises(CheckpointError, match="not JSON"):
        checkpoints.load(tmp_path / "last.json")


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_leaves_the_previous_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    model = make_model()
    following = make_checkpoint(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    monkeypatch.setattr(os, "fsync", fsync)
    if fails_at == 3:  # the folder's own sync comes after the commit: the new checkpoint stands
        checkpoints.save(following, saved)
        assert checkpoints.load(saved).epoch == 1
        return
    with pytest.raises(CheckpointError, match="the disk is full"):
        checkpoints.save(following, saved)
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


def test_an_optimizer_of_another_class_is_refused(saved: Path) -> None:
    model = make_model()
    with pytest.raises(CheckpointError, match="SGD"):
        restore(torch.optim.AdamW(model.parameters()), model, checkpoints.load(saved).optimizer)


def test_an_unknown_parameter_is_refused(saved: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    with pytest.raises(CheckpointError, match="lacks"):
        restore(torch.optim.SGD(model.parameters(), lr=0.1), model, checkpoints.load(saved).optimizer)


def test_a_foreign_parameter_cannot_be_saved() -> None:
    with pytest.raises(CheckpointError, match="build the optimizer from"):
        state_of(torch.optim.SGD(make_model().parameters(), lr=0.1), make_model())


@pytest.mark.parametrize(("code", "sentence"), [(errno.ENOSPC, "make room"), (errno.EACCES, "check its folder")])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    path = tmp_path / "config.yaml"
    checkpoints.write_atomically(path, b"old")

    def fsync(descriptor: int) -> None:
        raise OSError(code, "said the disk")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=rf"config\.yaml could not be written .*{sentence}") as caught:
        checkpoints.write_atomically(path, b"new")
    assert ("make room" in str(caught.value)) == (code == errno.ENOSPC)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
