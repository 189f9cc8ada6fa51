"""Growth and training on a GPU; without one, on one that is pretended (``pretend_gpu.py``)."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import auxin
from auxin.data import load
from auxin.methods import METHODS, Orthogonal
from auxin.models import build
from auxin.similarity import Similarity
from auxin.training import RunConfig, Trainer
from auxin.types import Method
from tests.pretend_gpu import pretended_gpu

REAL = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def gpu():
    with nullcontext() if REAL else pretended_gpu():
        yield


MODELS = {  # small: the pretended operators are slow
    "small_cnn": partial(build, "small_cnn", in_channels=3),
    "vit": partial(build, "vit", dim=16, depth=2),
}


def on_gpu(tensors: itertools.chain) -> bool:
    return all(t.is_cuda for t in tensors if isinstance(t, torch.Tensor) and t.ndim)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> itertools.chain:
    states = (state.values() for state in optimizer.state.values())
    return itertools.chain(model.parameters(), model.buffers(), *states)


def grown(make: Callable[[], nn.Module], method: str | Method, **options) -> list[float]:
    """Train and grow twice; return how much each growth moved the output."""
    torch.manual_seed(0)
    model = make().cuda()
    images, labels = torch.randn(8, 3, 32, 32, device="cuda"), torch.randint(10, (8,), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    defaults = {"trigger": auxin.every(1), "budget": auxin.ratio(0.5)}
    grower = auxin.Grower(model, optimizer, images[:2], method=method, **(defaults | options))
    changes = []
    for epoch in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        with torch.no_grad(), auxin.graph.capture.evaluation(model):
            before = model(images)
        assert grower.step(epoch, [(images, labels)] * 2, F.cross_entropy) is not None
        with torch.no_grad(), auxin.graph.capture.evaluation(model):
            changes.append(float((model(images) - before).abs().max() / before.abs().max()))
        assert on_gpu(everything(model, optimizer))
    return changes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_grows_where_the_model_is(name, method):
    changes = grown(MODELS[name], method)
    if METHODS[method].preserves:
        assert max(changes) < 1e-5


@pytest.mark.parametrize("neurons", ["new", "all"])
def test_neurons_are_moved_apart_there(neurons):
    grown(MODELS["small_cnn"], "firefly", refine=Similarity(iterations=2, neurons=neurons, reestimate_norms=2))


def test_neurons_are_told_apart_by_what_they_compute_there():
    grown(MODELS["small_cnn"], Orthogonal(criterion="activation"))


def test_depthwise_convolutions_grow_there():
    grown(partial(build, "mobilenet_v1", width=4), "net2net")


def test_a_budget_for_the_whole_model_is_ranked_there():
    grown(MODELS["small_cnn"], "splitting", budget=auxin.ratio(0.2, of="parameters", scope="global"))


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def fit(folder: Path, data, epochs: int = 4, **parts) -> Trainer:
    train, growth = {"epochs": epochs, "device": "cuda"}, {"every": 1, "times": 2}
    defaults = {"model": {"name": "small_cnn"}, "train": train, "growth": growth}
    merged = {part: {**defaults.get(part, {}), **parts.get(part, {})} for part in {**defaults, **parts}}
    trainer = Trainer(RunConfig.from_dict(merged), folder, data=data, console=Console(quiet=True))
    trainer.fit()
    assert on_gpu(everything(trainer.model, trainer.optimizer))
    return trainer


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_and_grows_there(tmp_path, digits, method):
    trainer = fit(tmp_path, digits, 3, growth={"every": 1, "method": method})
    assert len(trainer.events) == 2


def test_a_run_that_was_stopped_goes_on_there(tmp_path, digits):
    class StopRun(Exception):
        pass

    def stop(folder):
        raise StopRun

    config = RunConfig.from_dict({"model": {"name": "small_cnn"}, "train": {"epochs": 4}, "growth": {"every": 1}})
    with pytest.raises(StopRun):
        Trainer(config, tmp_path, data=digits, console=Console(quiet=True), on_epoch=stop).fit()
    trainer = Trainer(config, tmp_path, data=digits, console=Console(quiet=True))
    assert trainer.epochs_done == 1
    assert trainer.fit().phases[-1].test_accuracy is not None
    assert on_gpu(everything(trainer.model, trainer.optimizer))


@pytest.mark.parametrize("form", ["gram", "blockwise", "diagonal", "kfac"])
def test_the_expansion_score_decides_there(tmp_path, digits, form):
    natural = {"samples": 64, "times": 1, "tau": 0.5, "form": form}
    trainer = fit(tmp_path, digits, 2, growth={"trigger": "natural", "natural": natural})
    assert trainer.decisions


def test_a_plan_deepens_there(tmp_path, digits):
    plan = [{"after": 1, "widen": {".*": 12}}, {"after": 2, "deepen": {"features.2": 1}}]
    assert len(fit(tmp_path, digits, growth={"trigger": "planned", "plan": plan}).events) == 2
