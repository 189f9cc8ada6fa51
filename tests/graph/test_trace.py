"""What a graph says about whole models: its groups, its printout, its counts, and that tracing changes nothing."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import auxin
from auxin.errors import ConfigError, FrozenError
from auxin.models import mobilenet_v1, resnet20, vgg16
from tests.cases import CASES, call, randomise

# Attention and recurrence are counted by formula; torch's counter does not see the CPU kernels, nor bilinear layers.
UNCOUNTED = {
    "encoder_layer", "bare_attention", "fused_attention", "grouped_query_repeat", "grouped_query_sdpa", "lstm",
    "packed", "bilinear", "hf_vit", "hf_bert", "hf_gpt2", "hf_llama",
}  # fmt: skip


def build(name):
    case = CASES[name]
    if case.needs:
        pytest.importorskip(case.needs)
    return randomise(case.build()), case.inputs()


@pytest.mark.parametrize("name", CASES)
def test_parameters_and_flops_are_counted(name):
    model, inputs = build(name)
    graph = auxin.trace(model, inputs)
    assert graph.num_parameters() == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        call(model, inputs)
    if name not in UNCOUNTED:
        assert graph.flops() == counter.get_total_flops()


@pytest.mark.parametrize("name", CASES)
def test_every_expected_axis_can_grow_and_no_other(name):
    model, inputs = build(name)
    graph, case = auxin.trace(model, inputs), CASES[name]
    growing = {(slot.parameter, slot.dim) for group in graph.growable() for slot in group.slots}
    assert set(case.growable) <= growing
    assert not set(case.frozen) & growing
    assert all(group.frozen or group.inexact for group in graph.groups if group not in graph.growable())


@pytest.mark.parametrize("name", ["plain", "lstm", "fused_attention", "hf_gpt2"])
def test_the_printout_names_every_group_with_its_state(name):
    model, inputs = build(name)
    graph = auxin.trace(model, inputs)
    text = str(graph)
    for group in graph.growable():
        assert f"  {group.name} " in text
    for site in graph.sites:
        assert site.name in text
    reasons = {g.frozen or g.inexact for g in graph.groups if not g.growable and g.size > 1}
    assert all(reason in text for reason in reasons if "kernel size" not in reason)


def test_an_operator_without_a_rule_freezes_with_its_name_and_line():
    class Kronecker(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.after(torch.kron(self.before(x), torch.ones(1, 1)))

    before = next(g for g in auxin.trace(Kronecker(), torch.ones(3, 4)).groups if ("before.weight", 0) in axes(g))
    assert "no growth rule for operator kron" in before.frozen
    assert "test_trace.py" in before.frozen


def axes(group):
    return {(slot.parameter, slot.dim) for slot in group.slots}


@pytest.mark.parametrize("name", ["hf_vit", "hf_bert", "hf_gpt2", "hf_llama"])
def test_transformers_grow_heads_and_hidden_width_but_not_the_head_dimension(name):
    model, inputs = build(name)
    graph = auxin.trace(model, inputs)
    heads = [g for g in graph.growable() if any(s in f"{g.slots}" for s in ("q_proj", "query", "c_attn"))]
    hidden = [g for g in graph.growable() if g not in heads]
    assert heads and hidden
    per_head = [g for g in graph.groups if g.inexact and "square root of the head dimension" in g.inexact]
    rotary = [g for g in graph.groups if g.frozen and "inv_freq" in g.frozen]
    assert per_head or rotary


def test_heads_grow_with_the_attributes_and_the_config_that_describe_them():
    model, inputs = build("hf_bert")
    graph = auxin.trace(model, inputs)
    config = model.model.config
    for i in range(2):
        prefix = f"model.encoder.layer.{i}"
        auxin.widen(model, f"{prefix}.intermediate.dense", 6, graph=graph)
        assert config.intermediate_size == (16 if i else 10)
        heads = next(g for g in graph.growable() if (f"{prefix}.attention.self.query.weight", 0) in axes(g))
        auxin.widen(model, heads, 1, graph=graph)
        layer = model.model.encoder.layer[i]
        assert layer.attention.self.num_attention_heads == 4
        assert layer.attention.self.all_head_size == 16
        assert layer.attention.self.query.out_features == layer.attention.output.dense.in_features == 16
    assert config.num_attention_heads == 4


def test_tracing_leaves_model_flags_buffers_and_random_state_alone():
    model = vgg16()
    model.features[1].eval()
    flags = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    auxin.trace(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_unknown_names_list_the_known_ones():
    graph = auxin.trace(vgg16(), torch.randn(2, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"features\.0"):
        graph["nonsense"]
    with pytest.raises(ConfigError, match="depth site"):
        graph.site("nonsense")


def test_inexact_growth_needs_the_users_word():
    model, inputs = build("mlp_layer_norm")
    graph = auxin.trace(model, inputs)
    group = next(g for g in graph.groups if g.inexact)
    with pytest.raises(FrozenError, match="allow_inexact"):
        auxin.widen(model, group, 2, graph=graph)
    event = auxin.widen(model, group, 2, graph=graph, allow_inexact=True)
    assert event.max_change > 1e-4
    assert graph[group.name].size == group.size + 2


def test_whole_groups_of_a_group_norm_grow_exactly():
    model, inputs = build("group_norm")
    graph = auxin.trace(model, inputs)
    groups = next(g for g in graph.growable() if g.size == 5)
    event = auxin.widen(model, groups, 2, graph=graph)
    norm = model.trunk[1]
    assert (norm.num_groups, norm.num_channels) == (7, 21)
    assert event.max_change < 1e-5


@pytest.mark.parametrize(("make", "groups", "sites"), [(vgg16, 13, 13), (mobilenet_v1, 14, 27), (resnet20, 12, 26)])
def test_the_models_of_the_library_can_grow_everywhere(make, groups, sites):
    graph = auxin.trace(make(), torch.randn(2, 3, 32, 32))
    assert len(graph.growable()) == groups
    assert len(graph.sites) == sites


class WithoutAutocast(nn.Module):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return torch.ones(x.shape[1], 1, dtype=x.dtype).sin()


class SliceThatIsOnlyAskedForItsShape(nn.Module):
    """As rotary embeddings do it; beside the region, torch.export forgets that the slice reads ``h``."""

    def __init__(self):
        super().__init__()
        self.up, self.scale, self.down = nn.Linear(4, 8), WithoutAutocast(), nn.Linear(8, 3)

    def forward(self, x):
        h = self.up(x)
        scale = self.scale(h[:, 1:])
        return self.down(h[:, 1:] * scale)


def test_a_dead_operator_beside_a_region_of_autocast_is_dropped():
    graph = auxin.trace(SliceThatIsOnlyAskedForItsShape(), torch.randn(2, 5, 4))
    assert [group.name for group in graph.growable()] == ["up"]


class Autoregressive(nn.Module):
    """A mask of the model's own: what a new unit may see is for the model to say."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("mask", (torch.arange(6)[:, None] % 4 > torch.arange(4)).float())

    def forward(self, x):
        return self.down(nn.functional.linear(x, self.up.weight * self.mask).relu())


def test_a_mask_that_is_not_of_pruning_freezes_what_it_masks():
    graph = auxin.trace(Autoregressive(), torch.randn(2, 4))
    assert graph["up"].frozen == "nothing says how to extend the buffer mask"


def test_a_copy_of_a_pruned_neuron_is_pruned_alike_and_a_fresh_one_is_whole():
    model, inputs = build("pruned")
    mask = model[3].weight_mask.clone()
    graph = auxin.trace(model, inputs)
    parents = (2, -1)
    auxin.surgery.apply(auxin.GrowthPlan("test", (auxin.Widen("3", 2, parents),)), model, graph)
    assert torch.equal(model[3].weight_mask[:8], mask[[*range(7), 2]])
    assert bool((model[3].weight_mask[8] == 1).all())


def test_a_part_of_a_parameter_that_nothing_reads_does_not_grow() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Parameter(torch.randn(1, 16, 5)), nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x + self.table[:, : x.shape[1]])))

    graph = auxin.trace(Positions(), torch.randn(2, 6, 5))
    assert [group.name for group in graph.growable()] == ["a"]
    assert "nothing in the traced forward reads it" in str(graph)


def test_a_variable_in_the_line_tells_which_attribute_of_equal_size_it_is() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.inner_size = 4, 4  # one is how many heads there are, the other only looks like it
            self.qkv, self.out = nn.Linear(6, 36), nn.Linear(12, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, t, _ = x.shape
            h = self.heads
            q, k, v = (part.reshape(n, t, h, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            far = torch.ones(t, t).triu(self.inner_size).bool()
            return self.out(((q @ k.mT).masked_fill(far, -9.0).softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))

    torch.manual_seed(0)
    model, longer = Local().double(), torch.randn(2, 9, 6).double()
    before = model(longer)
    graph = auxin.trace(model, longer[:, :4])
    (group,) = [group for group in graph.growable() if group.size == 4]
    auxin.widen(model, group.name, 2, graph=graph)
    assert (model.heads, model.inner_size) == (6, 4)
    assert (model(longer) - before).abs().max() < 1e-10


def test_units_that_batch_norm_normalises_over_in_training_are_inexact() -> None:
    class OverTime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(5, 7), nn.BatchNorm1d(6), nn.Linear(7, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.relu(self.norm(self.up(x))))

    assert "normalises over it" in (auxin.trace(OverTime(), torch.randn(2, 6, 5)).atom("up").inexact or "")


@pytest.mark.parametrize("region", [lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad])
def test_a_region_within_the_forward_has_depth_sites_too(region) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with region():
                h = self.act(self.a(x))
                y = x + self.b(h)
            return y + h.sum()

    graph = auxin.trace(Net(), torch.randn(2, 5))
    assert [site.name for site in graph.sites] == ["act"] and graph["a"].size == 7


def test_a_batch_of_two_does_not_hold_back_two_heads() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.dim = 2, 3
            self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            t, n, _ = x.shape
            q, k, v = (part.view(t, n, self.heads, self.dim) for part in self.qkv(x).chunk(3, -1))
            y = torch.einsum("ijbn,jbnd->ibnd", torch.einsum("ibnd,jbnd->ijbn", q, k).softmax(1), v)
            return self.out(y.contiguous().view(t, n, self.heads * self.dim))

    for batch in (2, 3):
        assert "qkv[heads]" in [group.name for group in auxin.trace(Attention(), torch.randn(5, batch, 6)).growable()]


def test_what_is_computed_and_thrown_away_follows_what_it_reads_and_does_not_grow_itself() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.never = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(7, 2)
            self.idle = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x))
            self.idle(h)
            return self.b(h)

    model, inputs = Net(), torch.randn(2, 5)
    graph, before = auxin.trace(model, inputs), model(inputs)
    assert [group.name for group in graph.growable()] == [site.name for site in graph.sites] == ["a"]
    reasons = {slot.parameter: str(group.frozen) for group in graph.groups for slot in group.slots}
    assert all("does not use it" in reasons[name] for name in ("never.weight", "idle.0.bias", "idle.2.bias"))
    auxin.widen(model, "a", 2, graph=graph)
    assert model.idle[0].in_features == 9 and model.never.in_features == 7
    assert torch.allclose(model(inputs), before, atol=1e-6)
