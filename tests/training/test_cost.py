import copy
import json
import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import auxin
from auxin.training.cost import Ledger, latency_ms, num_flops, num_parameters, training_flops

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


FIRST, SECOND, LAST = 2 * 64 * 6 * 27, 2 * 64 * 5 * 54, 2 * 5 * 3
"""FLOPs of each layer's forward pass for one image, by hand."""


def by_hand(batch: int) -> int:
    # Each layer's weight and input take one pass each; the images themselves need no gradient.
    return batch * (2 * FIRST + 3 * SECOND + 3 * LAST)


def test_a_forward_pass_by_hand() -> None:
    model = net()
    model[1].eval()
    assert num_flops(model, IMAGES[:1]) == FIRST + SECOND + LAST
    assert model.training and not model[1].training, "the flags come back one by one"
    assert num_parameters(model) == 6 * 27 + 12 + 5 * 54 + 5 + 18


@pytest.mark.parametrize("batch", [2, 4])
def test_a_training_step_by_hand(batch: int) -> None:
    assert training_flops(net(), IMAGES[:batch], LABELS[:batch], functional.cross_entropy) == by_hand(batch)


def test_a_frozen_layer_takes_no_gradient() -> None:
    model = net()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    wanted = 4 * (FIRST + 2 * SECOND + 3 * LAST)
    assert training_flops(model, IMAGES, LABELS, functional.cross_entropy) == wanted


def test_a_training_step_leaves_everything_as_it_was() -> None:
    model = net().eval()
    model[0].train()
    functional.cross_entropy(model(IMAGES), LABELS).backward()
    state = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    rng, python = torch.get_rng_state(), random.getstate()
    training_flops(model, IMAGES, LABELS, functional.cross_entropy)
    assert torch.equal(torch.get_rng_state(), rng) and random.getstate() == python
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True] + [False] * 8
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == len(after) == 7 and all(torch.equal(a, b) for a, b in zip(after, grads, strict=True))


def test_the_count_is_that_of_full_precision_whatever_the_caller_does() -> None:
    channels_last = copy.deepcopy(net()).to(memory_format=torch.channels_last)
    images = IMAGES.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert training_flops(channels_last, images, LABELS, functional.cross_entropy) == by_hand(4)
    assert training_flops(net().bfloat16(), IMAGES, LABELS, functional.cross_entropy) == by_hand(4)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_attention_on_a_cpu_is_not_free() -> None:
    model, x = Attention(), torch.randn(4, 5, 8)
    forward = 4 * (2 * 5 * 8 * 24 + 2 * 2 * 2 * 5 * 5 * 4 + 2 * 5 * 8 * 8 + 2 * 8 * 3)
    assert num_flops(model, x) == forward
    backward_with = training_flops(model, x, LABELS, functional.cross_entropy)
    with sdpa_kernel(SDPBackend.MATH):
        plain = training_flops(model, x, LABELS, functional.cross_entropy)
    # The fused kernel computes the attention scores once more in its backward pass.
    assert backward_with == plain + 4 * 2 * 2 * 5 * 5 * 4


@pytest.mark.parametrize("hidden", [16, 24])
def test_torchs_fused_inference_paths_are_counted(hidden: int) -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, hidden, batch_first=True).eval(), torch.randn(4, 5, 8)
    for module, run in [(layer, lambda: layer(x)), (layer.self_attn, lambda: layer.self_attn(x, x, x))]:
        fused, plain = Ledger(), Ledger()
        with torch.no_grad(), fused.count("validation"):
            run()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), plain.count("validation"):
                run()
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert fused.total == plain.total > 0, type(module).__name__


def test_a_ledger_adds_up_and_survives_json() -> None:
    ledger = Ledger()
    ledger.add("training", 10)
    ledger.add("training", 5)
    ledger.add("validation", 1)
    with ledger.count("scoring"):
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert ledger.to_dict() == {"training": 15, "validation": 1, "scoring": 48, "surgery": 0}
    assert ledger.total == 64
    again = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again == ledger
    again.add("surgery", 1)
    assert ledger.flops["surgery"] == 0 and Ledger.from_dict({}).total == 0
    with pytest.raises(KeyError):
        ledger.add("training ", 1)  # type: ignore[arg-type]


def test_counts_nest_and_no_flop_is_counted_twice() -> None:
    ledger, a, b = Ledger(), torch.ones(2, 3), torch.ones(3, 4)
    with FlopCounterMode(display=False) as outside, ledger.count("surgery"):
        a @ b
        with ledger.count("scoring"):
            a @ b
            num_flops(nn.Linear(3, 4), a)
            ledger.add("training", 1000)  # not something that ran here
        a @ b
    assert ledger.to_dict() == {"training": 1000, "validation": 0, "scoring": 96, "surgery": 96}
    assert outside.get_total_flops() == 192


def test_what_fails_was_still_spent() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.count("scoring"):
        torch.ones(2, 3) @ torch.ones(3, 4)
        raise ZeroDivisionError
    assert ledger.total == 48


def grown(method: str, context: Any) -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    """A net after two steps, one growth event and one more step; only the event runs in the context."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()

    step()
    step()
    graph = auxin.trace(model, IMAGES[:1])
    with context:
        auxin.widen(
            model,
            graph.groups[0],
            2,
            graph=graph,
            method=method,
            optimizer=optimizer,
            loader=[(IMAGES, LABELS)],
            loss_fn=functional.cross_entropy,
            allow_inexact=True,
        )
    step()
    return model, optimizer, torch.get_rng_state()


@pytest.mark.parametrize("method", sorted(auxin.METHODS))
def test_growth_under_the_counter_is_the_same_bit_for_bit(method: str) -> None:
    ledger = Ledger()
    plain, plain_optimizer, plain_rng = grown(method, nullcontext())
    model, optimizer, rng = grown(method, ledger.count("surgery"))
    state = plain.state_dict()
    assert state["0.weight"].shape[0] == 8
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for a, b in zip(plain_optimizer.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert torch.equal(plain_rng, rng)
    if method in ("firefly", "gradmax", "splitting"):
        assert ledger.flops["surgery"] > 0


def test_latency_is_a_median_of_one_image_and_touches_nothing() -> None:
    model, seen = net(), []
    model[1].register_forward_hook(lambda module, args, out: seen.append((len(out), torch.get_num_threads())))
    torch.set_num_threads(2)
    try:
        assert 0 < latency_ms(model, IMAGES, repeats=5) < 1000
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [(1, 1)] * 8
    assert model.training and model[1].num_batches_tracked == 0


def test_an_lstm_on_a_cpu_is_not_free() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(5, 6, 2, batch_first=True), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0][:, -1])

    model, x = Net(), torch.zeros(2, 7, 5)
    by_hand = 2 * 2 * 7 * 24 * (5 + 6 + 6 + 6) + 2 * 2 * 6 * 4
    assert num_flops(model, x) == by_hand == auxin.trace(model, x).flops()
    labels = torch.zeros(2, dtype=torch.long)
    assert training_flops(model, x, labels, nn.functional.cross_entropy) > 2 * by_hand
