"""Proposals: each one's score on the copy that holds them all is the score of the model grown with it alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import auxin
from auxin.budgets import parse_cap
from auxin.errors import ConfigError
from auxin.expansion import Proposal, Settings, expansion_score, make_proposals, score_proposals
from auxin.expansion.score import FORMS
from auxin.expansion.scoring import NUM_CALIBRATION
from auxin.graph import Graph
from auxin.models import mobilenet_v1, resnet20, secnn, vgg16, vit
from auxin.statistics.batches import Batch
from auxin.statistics.persample import size, take
from auxin.surgery import apply
from auxin.types import Deepen, Widen
from tests.cases import CASES, double, randomise
from tests.statistics.test_persample import mean_loss, more
from tests.surgery.random_nets import Net, known_nets, traced


def grown(model: nn.Module, graph: Graph, proposal: Proposal, samples: Batch) -> nn.Module:
    """A copy of the model with one proposal carried out, which must add the parameters it says."""
    twin, own = copy.deepcopy((model, graph))
    event = apply(proposal.plan, twin, own, batches=[take(samples, slice(0, NUM_CALIBRATION)).inputs])
    assert event.parameters_after - event.parameters_before == proposal.parameters
    assert event.flops_after - event.flops_before == proposal.flops
    assert event.max_change < 1e-10
    return twin


def check(
    model: nn.Module, graph: Graph, samples: Batch, loss_fn: Callable[..., Tensor], forms: tuple[str, ...] = FORMS,
    fisher: Any = "empirical", **options: Any,
) -> list[Proposal]:  # fmt: skip
    """Compare the joint scores with those of models grown one by one; none may be below the current model's."""
    data = [(samples.inputs, samples.target)]
    proposals = make_proposals(model, graph, **{"widen": 2, **options})
    assert len({p.key for p in proposals}) == len(proposals)
    twins: dict[str, nn.Module] = {}
    # A layer is traced anew, which takes time: the last one, which all others come before, stands for them.
    layers = [p.key for p in proposals if p.kind == "deepen"][:-1]
    for form in forms:
        how = Settings(form, fisher)  # type: ignore[arg-type]
        now, damping, scored = score_proposals(model, graph, proposals, samples, loss_fn, how)
        assert [p.key for p in scored] == [p.key for p in proposals]

        def score(one: nn.Module, how: Settings = how, damping: float = damping) -> float:
            return expansion_score(one, loss_fn, data, damping=damping, form=how.form, fisher=how.fisher).value

        assert now == pytest.approx(score(model), rel=1e-9)
        for proposal in scored:
            assert proposal.score >= now * (1 - 1e-9), (form, proposal.key)
            if proposal.key in layers:
                continue
            if proposal.key not in twins:
                twins[proposal.key] = grown(model, graph, proposal, samples)
            assert proposal.score == pytest.approx(score(twins[proposal.key]), rel=1e-9), (form, proposal.key)
    return proposals


def images(n: int, edge: int = 32) -> Batch:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(n, 3, edge, edge, generator=draw, dtype=torch.float64)
    return Batch(x, torch.randint(10, (n,), generator=draw))


def averaging(model: nn.Module) -> nn.Module:
    """Replace max pooling: where two equal maxima differ by rounding, its subgradient jumps."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size))
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "vgg16": (lambda: averaging(vgg16(width=4)), ("features.0", "features.40")),
    "mobilenet_v1": (lambda: mobilenet_v1(width=2), ()),
    "resnet20": (lambda: resnet20(width=2), ()),
    "secnn": (lambda: averaging(secnn(channels=(4, 5, 3))), ("blocks.0", "blocks.1", "blocks.2")),
    "vit": (lambda: vit(dim=6, depth=2, heads=2), ("blocks.1",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_library(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(MODELS[name][0]()).double()
    samples = images(4)
    graph = auxin.trace(model, samples.inputs)
    forms = {"secnn": ("gram", "kfac"), "vit": FORMS}.get(name, ("gram",))
    some = None
    if len(graph.growable()) > 8:  # a few near the ends; the zoo has all forms
        names = [site.name for site in graph.sites]
        groups = [group.name for group in graph.growable()]
        some = [names[-2], groups[0], groups[-1]]
    proposals = check(model, graph, samples, F.cross_entropy, forms, within=some)
    assert {p.kind for p in proposals} == {"deepen", "widen"}
    if name == "secnn":
        blocks = check(model, graph, samples, F.cross_entropy, ("blockwise",), blocks=MODELS[name][1], widen=3)
        assert [p.key for p in blocks] == [
            *(f"deepen blocks.{k}.act" for k in range(3)), *(f"widen blocks.{k}" for k in range(3))
        ]  # fmt: skip
        assert [op.by for p in blocks[3:] for op in p.plan.operations] == [3, 3, 3]


def test_copies_of_residual_blocks_are_proposed_where_they_fit() -> None:
    graph = auxin.trace(model := resnet20(width=2).double(), images(4).inputs)
    copied = {site.name for site in graph.sites if site.neutral}
    proposed = {p.name: p for p in make_proposals(model, graph, widen=0)}
    assert copied and copied <= proposed.keys() == {site.name for site in graph.sites}
    for name in ("stage1.0", "stage3.2"):
        for _ in range(2):  # a copy after a copy costs the same
            event = auxin.deepen(model, name, graph=graph)
            assert event.parameters_after - event.parameters_before == proposed[name].parameters
            assert event.flops_after - event.flops_before == proposed[name].flops
    again = {p.name: p for p in make_proposals(model, graph, widen=0, max_layers=2)}
    assert again.keys() == proposed.keys() - {"stage1.0", "stage3.2"}


def test_the_score_of_a_copy_is_that_of_the_model_with_it() -> None:
    """Only what makes its addend zero has a gradient, so its score is that of these few parameters."""
    torch.manual_seed(0)
    model, samples = randomise(resnet20(width=2)).double(), images(4)
    graph = auxin.trace(model, samples.inputs)
    auxin.deepen(model, "stage1.1", graph=graph)
    randomise(model, seed=1)
    names = ["stage1.1", "stage3.2", "stage2.0.conv1"]
    proposals = check(model, graph, samples, F.cross_entropy, FORMS, within=names)
    assert {p.key for p in proposals} >= {"deepen stage1.1", "deepen stage3.2", "widen stage2.0.conv1"}
    now, _, scored = score_proposals(model, graph, proposals, samples, F.cross_entropy)
    assert all(p.score > now for p in scored if p.kind == "deepen")


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        self.block = Shifted()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        return self.head(self.block(x, x.mean(1, keepdim=True)))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x + shift)))


def test_a_block_called_with_more_arguments_is_not_copied_for_a_score() -> None:
    model, x = Conditioned().double(), torch.randn(5, 4, dtype=torch.float64)
    graph = auxin.trace(model, x)
    assert [site.name for site in graph.sites if site.neutral] == ["block"]
    samples = Batch(x, torch.randint(3, (5,)))
    proposals = check(model, graph, samples, F.cross_entropy, ("gram",))
    assert [p.name for p in proposals if p.kind == "deepen"] == ["act", "block.up"]


ZOO = (
    "residual", "channel_shuffle", "grouped", "group_norm", "squeeze_excite", "conv1d",
    "grouped_query_sdpa", "raw_parameters", "two_in_two_out", "called_twice", "token_batch_norm", "experts",
    "packed", "hf_llama",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ZOO if name in CASES])
def test_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(CASES[name].build()).double()
    inputs = more(double(CASES[name].inputs()))
    samples = Batch(inputs, torch.zeros(size(Batch(inputs, None))))
    forms = FORMS
    if CASES[name].tolerance > 1e-9:
        forms = ("blockwise",)
    check(model, auxin.trace(model, inputs), samples, mean_loss, forms)


@settings(max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(net=known_nets)
def test_random_architectures(net: Net) -> None:
    model = net.build().double()
    graph = traced(net)
    graph.example_inputs = tuple(x.double() for x in net.inputs())
    samples = Batch(more(net.inputs(torch.float64)), torch.zeros(6))
    # New units that are positions of another layer, as in token mixing, change its Kronecker factors.
    mixes = any(name == "tokens" for name, _, _ in net.operators)
    check(model, graph, samples, mean_loss, FORMS[:3] if mixes else FORMS)


class Rearranged(nn.Module):
    """Its layers see samples along another dimension than the first, or merged with positions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.act, self.second, self.last_act = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, T, 4) to (B, 3)."""
        batch, positions, _ = x.shape
        x = x.transpose(0, 1) if self.how == "positions first" else x.reshape(batch * positions, -1)
        x = self.last_act(self.second(self.act(self.first(x))))
        x = x.mean(0) if self.how == "positions first" else x.reshape(batch, positions, -1).mean(1)
        return self.head(x)


@pytest.mark.parametrize("how", ["positions first", "merged"])
@pytest.mark.parametrize("positions", [2, 3])
def test_samples_need_not_lie_along_the_first_dimension(how: str, positions: int) -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(6, positions, 4, generator=draw, dtype=torch.float64)
    model = randomise(Rearranged(how)).double()
    proposals = check(
        model, auxin.trace(model, x[:2]), Batch(x, torch.randint(3, (6,), generator=draw)), F.cross_entropy
    )
    assert {p.kind for p in proposals} == {"widen", "deepen"}


@pytest.mark.parametrize("kind", ["sampled", "ggn"])
@pytest.mark.parametrize("form", FORMS)
def test_other_fisher_matrices(form: str, kind: str) -> None:
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
            nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 10),
        )
    ).double()  # fmt: skip
    samples = images(6, 8)
    check(model, auxin.trace(model, samples.inputs), samples, F.cross_entropy, (form,), kind)


@pytest.mark.parametrize("kind", ["empirical", "ggn"])
@pytest.mark.parametrize("form", FORMS)
def test_float32_scores_are_close_to_float64_ones(form: Any, kind: Any) -> None:
    """Trained until the Fisher matrix is far from full rank: η must not be lost in rounded Gram matrices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(120, 4)
    y = x[:, :3].argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    proposals = make_proposals(model, auxin.trace(model, x[:2]))
    results = []
    for one, inputs in ((model, x), (copy.deepcopy(model).double(), x.double())):
        graph = auxin.trace(one, inputs[:2])
        found = score_proposals(one, graph, proposals, Batch(inputs, y), F.cross_entropy, Settings(form, kind))
        results.append([found[0], *(p.score for p in found[2])])
    assert results[0] == pytest.approx(results[1], rel=2e-3)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("act", [nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.GELU, nn.SiLU, lambda: nn.PReLU(1)])
def test_plans_preserve_the_function_in_both_modes_and_precisions(act: Callable[[], nn.Module], norm: bool) -> None:
    torch.manual_seed(0)

    def conv(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), act()]

    exact = randomise(nn.Sequential(*conv(3, 5), nn.AvgPool2d(2), *conv(5, 4), nn.Flatten(), nn.Linear(64, 10)))
    samples = images(16, 8)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model, x = copy.deepcopy(exact).to(dtype), samples.inputs.to(dtype)
        graph = auxin.trace(model, x)
        proposals = make_proposals(model, graph)
        part = Batch(x, samples.target)
        _, _, scored = score_proposals(model, graph, proposals, part, F.cross_entropy)
        assert {p.kind for p in scored} == {"deepen", "widen"}
        for proposal in (scored[0], scored[-1]):
            twin, own = copy.deepcopy((model, graph))
            apply(proposal.plan, twin, own, batches=[x])
            for train in (False, True):
                before, after = copy.deepcopy(model).train(train)(x), copy.deepcopy(twin).train(train)(x)
                scale = float(before.abs().max())
                # In train mode the inserted norm sees the statistics of this very batch, which it was given.
                assert float((after - before).abs().max()) < limit * scale, (proposal.key, train)


def test_new_channels_of_the_applied_plan_have_the_statistics_they_were_scored_with() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()]
    model = randomise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 10))).double()
    samples = images(100, 8)
    graph = auxin.trace(model, samples.inputs)
    proposals = make_proposals(model, graph, deepen=False)
    _, _, (first, _) = score_proposals(model, graph, proposals, samples, F.cross_entropy)
    apply(first.plan, model, graph)
    x = model[0](samples.inputs[:NUM_CALIBRATION])[:, 4:]
    torch.testing.assert_close(model[1].running_mean[4:], x.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var[4:], x.var((0, 2, 3), unbiased=False))


def small() -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.SiLU()),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
    )  # fmt: skip
    return model, auxin.trace(model, torch.randn(2, 3, 8, 8))


def keys(proposals: list[Proposal]) -> list[str]:
    return [p.key for p in proposals]


class Quantised(nn.Module):
    """The nearest code in place of the hidden state, with a straight-through gradient: the codes get none."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.act, self.leave = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)
        self.codes = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.enter(x))
        code = self.codes[torch.cdist(z, self.codes).argmin(1)]
        return self.leave(z + (code - z).detach())


def test_a_parameter_that_the_output_reads_without_its_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Quantised()).double()
    samples = Batch(torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2]))
    graph = auxin.trace(model, samples.inputs)
    assert check(model, graph, samples, nn.CrossEntropyLoss())


def test_what_is_proposed() -> None:
    model, graph = small()
    every = ["deepen 0.2", "deepen 1.2", "deepen 1.4", "widen 0.0", "widen 1.0", "widen 1.3"]
    assert keys(make_proposals(model, graph)) == every
    assert keys(make_proposals(model, graph, deepen=False)) == every[3:]
    assert keys(make_proposals(model, graph, widen=0)) == every[:3]
    assert keys(make_proposals(model, graph, within=["1"])) == [every[1], every[2], *every[4:]]
    assert keys(make_proposals(model, graph, within=["0.2"])) == [every[0]]
    assert keys(make_proposals(model, graph, blocks=["1"])) == [every[1], every[2], "widen 1"]
    assert keys(make_proposals(model, graph, blocks=["1", "0"], within=["1"])) == [every[1], every[2], "widen 1"]
    widened = make_proposals(model, graph, deepen=False, widen=0.4)
    assert [op.by for p in widened for op in p.plan.operations] == [2, 2, 2]  # of 4, 6 and 5
    assert make_proposals(model, graph, widen=0, kernel_size=1)[0].parameters == 4 * 4 + 2 * 4
    for path in ("2", "0.", "1.0.weight", "10"):
        with pytest.raises(ConfigError, match="Nothing inside"):
            make_proposals(model, graph, within=[path])


def test_a_layer_at_an_edge_of_a_single_position_has_no_weights_that_see_only_padding() -> None:
    torch.manual_seed(0)
    squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.ELU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *squeeze).double()
    samples = images(8, 6)
    graph = auxin.trace(model, samples.inputs)
    assert {site.name: site.pointwise for site in graph.sites} == {"1": False, "4": True}
    proposals = check(model, graph, samples, nn.CrossEntropyLoss())
    assert {p.name: p.parameters for p in proposals if p.kind == "deepen"} == {"1": 6 * 6 * 9 + 6, "4": 4 * 4 + 4 + 1}
    auxin.deepen(model, "4", graph=graph, kernel_size=5)
    assert model[4].grown[0].map.kernel_size == (1, 1)  # type: ignore[index,union-attr]
    nn.CrossEntropyLoss()(model(samples.inputs), samples.target).backward()
    assert bool((model[4].grown[0].map.weight.grad != 0).all())  # type: ignore[index,union-attr]


def test_blocks_that_share_a_group_are_refused() -> None:
    model, graph = small()
    with pytest.raises(ConfigError, match=r"'1\.0'.*more than one"):
        make_proposals(model, graph, blocks=["1", "1.0"])


def test_layers_of_a_site_are_limited_also_over_several_events() -> None:
    model, graph = small()
    assert keys(make_proposals(model, graph, widen=0, max_layers=0)) == []
    for count in range(3):
        proposals = make_proposals(model, graph, widen=0, max_layers=2)
        assert ("deepen 0.2" in keys(proposals)) == (count < 2)
        if count < 2:
            apply(proposals[0].plan, model, graph, batches=[torch.randn(4, 3, 8, 8)])
    assert len(model[0][2].grown) == 2
    assert "deepen 0.2" in keys(make_proposals(model, graph, widen=0, max_layers=None))


@pytest.mark.parametrize(
    "cap",
    ["params<=720", "flops<=60k", "neurons<=19", "params<=760,flops<=58k", "flops<=70k,params<=600", "params<=10"],
)
def test_no_proposal_exceeds_the_cap(cap: str) -> None:
    model, graph = small()
    limits = {part.split("<=")[0]: float(part.split("<=")[1].replace("k", "000")) for part in cap.split(",")}
    free = make_proposals(model, graph, widen=6)
    held = make_proposals(model, graph, widen=6, cap=parse_cap(cap))
    assert sum(p.parameters for p in held) < sum(p.parameters for p in free)
    fits = []
    for proposal in free:
        twin, own = copy.deepcopy((model, graph))
        apply(proposal.plan, twin, own)
        if within(own, limits):
            fits.append(proposal.key)
    assert set(fits) <= set(keys(held))
    for proposal in held:
        twin, own = copy.deepcopy((model, graph))
        apply(proposal.plan, twin, own)
        assert within(own, limits), proposal.key
        for op in proposal.plan.operations:
            if isinstance(op, Widen) and op.by < 6:  # shrunk no further than needed
                wider = make_proposals(model, graph, deepen=False, within=[op.group], widen=op.by + 1)[0]
                twin, own = copy.deepcopy((model, graph))
                apply(wider.plan, twin, own)
                assert not within(own, limits)
            if isinstance(op, Deepen):
                assert proposal.key in fits


def within(graph: Graph, limits: dict[str, float]) -> bool:
    sizes = {"params": graph.num_parameters(), "flops": graph.flops(), "neurons": sum(g.size for g in graph.growable())}
    return all(sizes[of] <= limit for of, limit in limits.items())


def test_noise_is_no_promise_to_preserve() -> None:
    model, graph = small()
    (plan, *_) = [p.plan for p in make_proposals(model, graph, noise=0.3)]
    assert not plan.preserves
    event = apply(plan, model, graph, batches=[torch.randn(4, 3, 8, 8)])
    assert event.max_change > 1e-3


def test_proposing_and_scoring_leave_everything_as_it_was() -> None:
    torch.manual_seed(0)
    model, graph = small()
    model.train()
    model[0].eval()
    samples = Batch(torch.randn(6, 3, 8, 8), torch.arange(6))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    before, random = str(graph), torch.random.get_rng_state()
    results = []
    for _ in range(2):
        proposals = make_proposals(model, graph, generator=torch.Generator().manual_seed(3), cap=parse_cap("flops<=1M"))
        for form in FORMS:
            results.append(score_proposals(model, graph, proposals, samples, F.cross_entropy, Settings(form)))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags and str(graph) == before
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for first, second in zip(results[: len(FORMS)], results[len(FORMS) :], strict=True):
        assert first[:2] == second[:2]
        assert [p.score for p in first[2]] == [p.score for p in second[2]]


def test_parts_that_are_not_trained_are_not_widened_but_may_be_followed_by_new_layers() -> None:
    model, graph = small()
    model[0].requires_grad_(False)
    model[1][0].requires_grad_(False)
    model.double()
    samples = images(6, 8)
    graph = auxin.trace(model, samples.inputs)
    proposals = make_proposals(model, graph)
    now, damping, scored = score_proposals(model, graph, proposals, samples, F.cross_entropy)
    score = {p.key: p.score for p in scored}
    assert "widen 0.0" not in score  # its new outgoing weights would lie in a layer that is not trained
    assert score["widen 1.0"] > now and score["deepen 0.2"] > now
    data = (samples.inputs, samples.target)
    for proposal in scored:
        twin = grown(model, graph, proposal, samples)
        assert expansion_score(twin, F.cross_entropy, data, damping=damping).value == pytest.approx(proposal.score)


class BilinearForm(nn.Module):
    """Weights that two groups read, along a dimension each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(3, 2)
        self.weight = nn.Parameter(torch.randn(5, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.einsum("ni,nj,ijk->nk", self.a(x).relu(), self.b(x).relu(), self.weight))


def test_groups_that_read_one_weight_along_two_dimensions_are_not_widened() -> None:
    torch.manual_seed(0)
    model, x = BilinearForm().double(), torch.randn(12, 4, dtype=torch.float64)
    samples = Batch(x, torch.randint(2, (12,)))
    proposals = check(model, auxin.trace(model, x), samples, F.cross_entropy)
    assert [p.key for p in proposals] == ["deepen a", "deepen b", "widen weight"]


def test_copies_alone_keep_a_net_to_its_family() -> None:
    model, inputs = vit(dim=6, depth=2, heads=2).double(), images(4).inputs
    graph = auxin.trace(model, inputs)
    every, copies = (make_proposals(model, graph, widen=0, deepen=how) for how in (True, "copies"))
    assert [p.name for p in copies] == ["blocks.0", "blocks.1"]
    assert {p.name for p in every} > {p.name for p in copies}
    assert (
        make_proposals(vgg16(width=2), auxin.trace(vgg16(width=2), images(2).inputs.float()), widen=0, deepen="copies")
        == []
    )
    with pytest.raises(ConfigError, match="copies"):
        auxin.natural(deepen="layers")
