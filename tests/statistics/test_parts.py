"""Batches in parts: the same gradients, less memory, and whole where samples are not independent."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import auxin
from auxin.budgets import Allocated
from auxin.errors import ConfigError
from auxin.methods.gradmax import GradMax
from auxin.methods.splitting import Splitting
from auxin.statistics.activations import depthwise
from auxin.statistics.batches import Batch, measuring
from auxin.statistics.parts import in_parts
from auxin.statistics.splitting import Curvature, SplittingMatrices
from tests.cases import CASES, double, randomise
from tests.methods.losses import generic_loss

MODELS = ["plain", "residual", "depthwise", "fused_attention", "unet"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def case(name, size=16):
    model = randomise(CASES[name].build()).double().eval()
    inputs = double(CASES[name].inputs())
    draw = generator(5)
    return model, inputs, tuple(torch.randn(size, *x.shape[1:], generator=draw, dtype=torch.float64) for x in inputs)


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, lambda z, y: F.cross_entropy(z, y, reduction="sum")])
def test_the_parts_have_the_gradients_of_the_whole_batch_however_the_loss_averages(loss_fn):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))
    y[:4] = -100  # ignored, so that a mean over parts would be wrong
    parts = in_parts(model, Batch(x, y), loss_fn, 3)
    assert [len(part.inputs) for part in parts] == [3, 3, 3, 1]
    sum(part.objective(model(part.inputs)) for part in parts).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss_fn(model(x), y).backward()
    for mine, p in zip(ours, model.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, rtol=1e-12)


class SeesTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(4, 4)

    def forward(self, x):
        return self.rnn(x)[0]


class OneSizeOnly(nn.Module):
    def forward(self, x):
        return x.view(8, 2, 6)


class Summed(nn.Module):
    def forward(self, x):
        return x.square().sum()


@pytest.mark.parametrize("model", [SeesTheBatch(), SequenceFirst(), OneSizeOnly(), Summed()])
def test_a_batch_whose_samples_are_not_independent_along_the_first_dimension_stays_whole(model):
    x = torch.randn(8, 3, 4)
    (part,) = in_parts(model, Batch(x, None), lambda output, _: output.square().sum(), 2)
    assert part.inputs is x
    assert torch.equal(part.objective(model(x)), model(x).square().sum())


def test_inputs_of_several_lengths_stay_whole():
    batch = Batch({"x": torch.randn(8, 3), "mask": torch.ones(3, 3)}, None)
    assert len(in_parts(lambda inputs: inputs["x"], batch, lambda output, _: output.sum(), 2)) == 1


@pytest.mark.parametrize("name", MODELS)
def test_products_with_splitting_matrices_do_not_depend_on_the_micro_batch(name):
    model, inputs, batch = case(name)
    graph = auxin.trace(model, inputs)
    batches = [Batch(batch, None), Batch(tuple(2 * x for x in batch), None)]
    found = []
    with measuring(model):
        for size in (None, 5):
            names = [group.name for group in graph.growable()]
            matrices = SplittingMatrices(model, graph, batches, generic_loss, names, size)
            draw = generator()
            like = {g: matrices.weights(g) for g in matrices.units}
            vectors = {g: torch.randn(x.shape, generator=draw, dtype=x.dtype) for g, x in like.items()}
            found.append(matrices.product(vectors))
            assert len(matrices.parts) == (2 if size is None else 8)
    assert any(float(whole.abs().max()) > 0 for whole in found[0].values())
    for group, whole in found[0].items():
        assert torch.allclose(found[1][group], whole, rtol=1e-10, atol=1e-12 * float(whole.abs().max())), group


@pytest.mark.parametrize("method", [GradMax, Splitting])
@pytest.mark.parametrize("name", MODELS)
def test_an_event_does_not_depend_on_the_micro_batch(method, name):
    model, inputs, batch = case(name)
    graph = auxin.trace(model, inputs)
    budget = Allocated({group.name: 1 for group in graph.growable()})
    whole, parted = (
        method(micro_batch=size).propose(
            model,
            graph,
            budget,
            generator=torch.Generator().manual_seed(0),
            batches=[(batch, None)],
            loss_fn=generic_loss,
        )
        for size in (None, 5)
    )
    for a, b in zip(whole.operations, parted.operations, strict=True):
        assert (a.group, a.parents) == (b.group, b.parents)
        for key, tensor in (*a.values.items(), *a.offsets.items()):
            other = b.values[key] if key in b.values else b.offsets[key]
            assert torch.allclose(tensor, other, rtol=1e-6, atol=1e-8), key


def test_a_graph_is_freed_as_soon_as_it_is_multiplied():
    """A reference cycle would keep the graphs of all parts until the garbage collector runs."""
    model, inputs, batch = case("depthwise")
    graph = auxin.trace(model, inputs)
    gc.collect()
    gc.disable()
    try:
        with measuring(model):
            matrices = SplittingMatrices(model, graph, [Batch(batch, None)], generic_loss, ["trunk.0"], 5)
            curvature = Curvature(matrices.forward, matrices.parts[0])
            stored = [weakref.ref(x) for call in curvature.calls for x in (call.y, call.x)]
            del curvature
        assert stored and all(reference() is None for reference in stored)
    finally:
        gc.enable()


@pytest.mark.parametrize("bias", [None, torch.randn(6, dtype=torch.float64)])
@pytest.mark.parametrize("padding", [1, "same"])
def test_a_depthwise_filter_of_constant_weight_has_the_derivatives_of_the_convolution(bias, padding):
    weight = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    stride = 2 if padding == 1 else 1

    def ours(x):
        return depthwise(F.conv2d, x, weight, bias, stride, padding, groups=6)

    assert torch.allclose(ours(x), F.conv2d(x, weight, bias, stride, padding, 1, 6), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(ours, x)
    assert torch.autograd.gradgradcheck(ours, x)


@pytest.mark.parametrize("method", [GradMax, Splitting])
def test_a_micro_batch_of_nothing_is_refused(method):
    with pytest.raises(ConfigError, match="micro_batch of at least 1"):
        method(micro_batch=0)
