"""The natural trigger through a Grower: when it decides, what and why, and that a resumed run decides the same."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import auxin
from auxin.errors import AuxinError, CheckpointError, ConfigError, TrainingError
from auxin.expansion import Settings, expansion_score, make_proposals, score_proposals
from auxin.expansion.score import gather
from auxin.methods.random import Random
from auxin.models import build
from auxin.types import Decision, Deepen, Widen
from tests.cases import randomise

DRAW = torch.Generator().manual_seed(1)
X, Y = torch.randn(24, 3, 6, 6, generator=DRAW), torch.randint(4, (24,), generator=DRAW)
DATA = (X, Y)


def make() -> nn.Module:
    torch.manual_seed(0)
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1),
            nn.BatchNorm2d(5), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4),
        )
    )  # fmt: skip


def start(trigger: Any, model: nn.Module | None = None, **options: Any) -> auxin.Grower:
    model = model or make()
    return auxin.Grower(
        model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), X[:2], trigger=trigger, **options
    )


def train(grower: auxin.Grower, epochs: range, data: Any = None) -> list[auxin.Event | None]:
    """A plain loop: a step of descent, then the trigger."""
    events = []
    for epoch in epochs:
        grower.model.train()
        grower.optimizer.zero_grad()
        F.cross_entropy(grower.model(X), Y).backward()
        grower.optimizer.step()
        events.append(grower.step(epoch, data, F.cross_entropy))
    return events


def grew(events: list[auxin.Event | None]) -> list[int]:
    return [event.epoch for event in events if event is not None]


def eager(**options: Any) -> Any:
    """A trigger that grows whenever it is asked."""
    return auxin.natural(**{"tau": 0.0, "data": DATA, "widen": 1, **options})


def test_a_cooldown_counts_epochs_without_a_decision() -> None:
    grower = start(eager(cooldown=2))
    assert grew(train(grower, range(7))) == [0, 3, 6]
    reasons = [decision.reason for decision in grower.decisions]
    assert reasons[1] == "epoch 1 of a cooldown of 2"
    assert reasons[2] == "epoch 2 of a cooldown of 2"
    assert [decision.epoch for decision in grower.decisions] == list(range(7))
    assert [decision.winner is not None for decision in grower.decisions] == [True, False, False] * 2 + [True]
    assert grower.decisions[1].proposals == () and grower.decisions[1].score is None


def test_the_start_is_counted_from_one_and_times_limits_the_events() -> None:
    grower = start(eager(start=3, times=2))
    assert grew(train(grower, range(6))) == [2, 3]
    reasons = [decision.reason for decision in grower.decisions]
    assert reasons[0] == reasons[1] == "decisions begin after epoch 3"
    assert reasons[4] == reasons[5] == "all 2 events have happened"
    assert grew(train(start(eager(times=0)), range(2))) == []


def scored(model: nn.Module, **options: Any) -> tuple[float, dict[str, Any]]:
    """The current score and every proposal, as the trigger should see them."""
    graph = auxin.trace(model, X[:2])
    samples, loss = gather(model, DATA, F.cross_entropy, 512)
    now, _, proposals = score_proposals(model, graph, make_proposals(model, graph, **options), samples, loss)
    return now, {p.key: p for p in proposals}


def test_the_best_proposal_grows_if_its_ratio_exceeds_tau_and_its_gain_alpha() -> None:
    model = make()
    now, proposals = scored(model, widen=2)
    ranked = sorted(proposals.values(), key=lambda p: -p.score)
    ratio, gain = ranked[0].score / now, ranked[0].score - now
    assert ratio > 1 and gain > 0
    for tau, alpha, grows, words in (
        (ratio - 1e-6, 0.0, True, "times the current"),
        (ratio + 1e-6, 0.0, False, "and tau is 1."),
        (0.0, gain - 1e-6, True, "times the current"),
        (0.0, gain + 1e-6, False, "alpha = 0."),
    ):
        grower = start(auxin.natural(tau, alpha, data=DATA, widen=2), copy.deepcopy(model))
        event = grower.step(4, None, F.cross_entropy)
        (decision,) = grower.decisions
        assert (event is not None) == grows == (decision.winner is not None)
        assert words in decision.reason
        assert decision.epoch == 4 and decision.threshold == tau and decision.seconds > 0
        assert decision.score == pytest.approx(now, rel=1e-5)
        assert [f"{c.kind} {c.name}" for c in decision.proposals] == [p.key for p in ranked]
        for candidate, proposal in zip(decision.proposals, ranked, strict=True):
            assert candidate.score == pytest.approx(proposal.score, rel=1e-5)
            assert candidate.ratio == pytest.approx(proposal.score / now, rel=1e-5)
            assert candidate.parameters == proposal.parameters
        if event is not None:
            assert decision.winner == ranked[0].key == f"{event.changes[0].kind} {event.changes[0].target}"
            assert event.reason == decision.reason and event.epoch == 4
            assert event.parameters_after - event.parameters_before == ranked[0].parameters


def test_penalties_by_hand() -> None:
    model = make()
    size = sum(p.numel() for p in model.parameters())
    now, proposals = scored(model, widen=3)
    for options in ({"penalty": 3e-5}, {"relative_penalty": 2.0}, {"penalty": 1e-5, "relative_penalty": 0.3}):
        grower = start(auxin.natural(0.0, data=DATA, widen=3, **options), copy.deepcopy(model))
        grower.step(0, None, F.cross_entropy)
        (decision,) = grower.decisions
        ratios = {
            key: p.score / now * math.exp(
                -options.get("penalty", 0) * p.parameters**2
                - options.get("relative_penalty", 0) * (p.parameters / size) ** 2
            )
            for key, p in proposals.items()
        }  # fmt: skip
        order = sorted(ratios, key=lambda key: -ratios[key])
        assert [f"{c.kind} {c.name}" for c in decision.proposals] == order
        for candidate in decision.proposals:
            assert candidate.ratio == pytest.approx(ratios[f"{candidate.kind} {candidate.name}"], rel=1e-5)
            assert candidate.score == pytest.approx(proposals[f"{candidate.kind} {candidate.name}"].score, rel=1e-5)
    # By what it costs to run instead of by what it weighs.
    flops = start(auxin.natural(0.0, data=DATA, widen=3, relative_penalty=2.0, cost="flops"), copy.deepcopy(model))
    before = flops.graph.flops()
    flops.step(0, None, F.cross_entropy)
    for candidate in flops.decisions[0].proposals:
        p = proposals[f"{candidate.kind} {candidate.name}"]
        assert candidate.ratio == pytest.approx(p.score / now * math.exp(-2 * (p.flops / before) ** 2), rel=1e-5)
    # So large a penalty that any growth costs more than it brings.
    grower = start(auxin.natural(1.0, data=DATA, penalty=1e-2), model)
    assert grower.step(0, None, F.cross_entropy) is None
    assert "after the penalty for size" in grower.decisions[0].reason


def test_the_reason_is_of_the_proposal_that_grows() -> None:
    """A penalty for size may rank a small proposal first whose gain is below alpha: a later one grows."""
    model = make()
    now, proposals = scored(model, widen=2)
    small, large = (choose(proposals.values(), key=lambda p: p.parameters) for choose in (min, max))
    assert 0 < small.score - now < large.score - now
    alpha = (small.score + large.score) / 2 - now
    penalty = math.log(2 * large.score / small.score) / large.parameters**2
    grower = start(auxin.natural(0.0, alpha, data=DATA, widen=2, penalty=penalty), model)
    event = grower.step(0, None, F.cross_entropy)
    (decision,) = grower.decisions
    first = decision.proposals[0]
    assert decision.winner is not None and decision.winner != f"{first.kind} {first.name}"
    assert event.reason == decision.reason and decision.reason.startswith(f"{decision.winner} scores ")


@pytest.mark.parametrize("deepen", [True, False])
def test_the_plan_that_is_applied_is_the_one_that_was_scored(deepen: bool) -> None:
    model = make().double()
    options = {"widen": 0} if deepen else {"deepen": False, "widen": 3}
    trigger = auxin.natural(0.0, data=(X.double(), Y), damping=1e-2, num_samples=20, **options)
    grower = auxin.Grower(model, None, X[:2].double(), trigger=trigger, seed=5)
    event = grower.step(0, None, F.cross_entropy)
    best = grower.decisions[0].proposals[0]
    assert event is not None and event.max_change < 1e-10
    (operation,) = grower.decisions[0].plan.operations
    assert isinstance(operation, Deepen if deepen else Widen)
    after = expansion_score(model, F.cross_entropy, (X.double(), Y), damping=1e-2, num_samples=20)
    assert after.value == pytest.approx(best.score, rel=1e-9)
    assert grower.decisions[0].damping == 1e-2


def test_scores_use_the_held_data_or_else_the_loader() -> None:
    class Counted:
        read = 0

        def __iter__(self) -> Any:
            for k in range(0, 24, 4):
                Counted.read += 1
                yield X[k : k + 4], Y[k : k + 4]

    decisions = []
    for data, loader in ((DATA, Counted()), (Counted(), [(X * math.nan, Y)]), (None, Counted()), (None, [DATA])):
        Counted.read = 0
        grower = start(auxin.natural(1e9, data=data, num_samples=9))
        grower.step(0, loader, F.cross_entropy)
        assert Counted.read == (0 if data is DATA or (isinstance(loader, list) and data is None) else 3)
        decisions.append(grower.decisions[0])
    assert len({decision.score for decision in decisions}) == 1
    assert len({decision.proposals for decision in decisions}) == 1


@pytest.mark.parametrize("form", ["gram", "blockwise", "diagonal", "kfac"])
def test_equal_runs_grow_equal_weights(form: Any) -> None:
    results = []
    for _ in range(2):
        grower = start(eager(form=form, fisher="sampled", cooldown=1, seed=3), seed=2)
        train(grower, range(4))
        decisions = [{**d.to_dict(), "seconds": 0} for d in grower.decisions]
        results.append((grower.model.state_dict(), decisions, torch.random.get_rng_state()))
    (first, chosen, _), (second, again, _) = results
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert chosen == again and sum(d["winner"] is not None for d in chosen) == 2


def test_a_decision_touches_nothing_but_what_grows() -> None:
    grower = start(auxin.natural(1e9, data=DATA))
    state, random = copy.deepcopy(grower.model.state_dict()), torch.random.get_rng_state()
    grower.model.train()
    assert grower.step(0, None, F.cross_entropy) is None
    assert grower.model.state_dict().keys() == state.keys() and grower.model.training
    assert all(torch.equal(v, state[k]) for k, v in grower.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    eager_grower = start(eager())
    eager_grower.step(0, None, F.cross_entropy)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_resumed_run_decides_the_same() -> None:
    def fresh() -> Any:
        return eager(cooldown=1, times=3, deepen=False)

    whole = start(fresh(), seed=4)
    train(whole, range(6))
    first = start(fresh(), seed=4)
    train(first, range(3))
    saved = json.loads(json.dumps(first.state_dict()))
    weights, optimizer = first.model.state_dict(), first.optimizer.state_dict()
    model = make()
    auxin.History.from_json(saved["history"]).replay(model)
    model.load_state_dict(weights)
    second = start(fresh(), model, seed=4)
    second.optimizer.load_state_dict(optimizer)
    second.load_state_dict(saved)
    assert second.decisions == [Decision.from_dict(d) for d in saved["decisions"]]
    train(second, range(3, 6))
    plain = [[{**d.to_dict(), "seconds": 0} for d in one.decisions] for one in (whole, second)]
    assert plain[0] == plain[1] and len(plain[0]) == 6
    state = second.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.model.state_dict().items())
    with pytest.raises(CheckpointError, match="another kind of trigger"):
        start(auxin.every(2), model).load_state_dict(second.state_dict())


def test_decisions_survive_json() -> None:
    grower = start(eager(times=1))
    train(grower, range(2))
    for decision in grower.decisions:
        data = json.loads(json.dumps(decision.to_dict()))
        assert Decision.from_dict(data) == decision
        assert "plan" not in data and "batches" not in data


def test_another_method_may_give_the_new_weights() -> None:
    grower = start(eager(deepen=False, widen=2), method="gradmax")
    event = grower.step(0, [DATA], F.cross_entropy)
    assert event is not None and event.method == "natural, gradmax" and event.max_change < 1e-4
    (change,) = event.changes
    assert change.after - change.before == 2
    new = dict(grower.model.named_parameters())[f"{change.target}.weight"][change.before :]
    random = start(eager(deepen=False, widen=2))
    random.step(0, None, F.cross_entropy)
    other = dict(random.model.named_parameters())[f"{change.target}.weight"][change.before :]
    assert new.shape == other.shape and not torch.equal(new, other)
    deeper = start(eager(widen=0), method="gradmax")
    assert deeper.step(0, None, F.cross_entropy).changes[0].kind == "deepen"  # new layers need no such weights


@pytest.mark.parametrize("until", ["params<=460", "params<=600,flops<=60k", "neurons<=12"])
def test_growth_stops_at_the_cap(until: str) -> None:
    grower = start(eager(widen=3), until=until)
    train(grower, range(8))
    graph = grower.graph
    for part in until.split(","):
        of, limit = part.split("<=")
        measured = {"params": graph.num_parameters(), "flops": graph.flops(),
                    "neurons": sum(g.size for g in graph.growable())}[of]  # fmt: skip
        assert measured <= float(limit.replace("k", "000"))
    assert grower.events
    assert grower.decisions[-1].reason == "nothing that may grow fits the limits"


@pytest.mark.parametrize("until", ["params<=700", "flops<=70k", "neurons<=20", "params<=750,flops<=80k"])
def test_several_proposals_at_once_stay_below_the_cap_and_add_up(until: str) -> None:
    grower = start(eager(widen=3, most=3), until=until)
    train(grower, range(6))
    graph = grower.graph
    for part in until.split(","):
        of, limit = part.split("<=")
        measured = {"params": graph.num_parameters(), "flops": graph.flops(),
                    "neurons": sum(g.size for g in graph.growable())}[of]  # fmt: skip
        assert measured <= float(limit.replace("k", "000"))
    assert grower.decisions[-1].reason == "nothing that may grow fits the limits"
    together = start(eager(widen=3, most=3), until="params<=5k")
    event = together.step(0, None, F.cross_entropy)
    (decision,) = together.decisions
    assert decision.winner == ", ".join(f"{c.kind} {c.name}" for c in decision.proposals[:3])
    assert {f"{c.kind} {c.target}" for c in event.changes} == set(decision.winner.split(", "))
    assert event.max_change < 1e-4


def test_layers_and_units_at_once_both_happen_whatever_the_method() -> None:
    for method in ("random", "net2net"):
        grower = start(eager(widen=3, most=9), until="params<=5k", method=method)
        event = grower.step(0, None, F.cross_entropy)
        kinds = {change.kind for change in event.changes}
        assert kinds == {"widen", "deepen"}, method
        assert grower.decisions[0].winner.count(",") + 1 == len(event.changes)
        assert event.method == ("natural" if method == "random" else "natural, net2net")


def test_noise_in_a_new_layer_is_no_promise_whatever_the_method() -> None:
    for method in ("random", "net2net"):
        grower = start(eager(widen=3, most=9, noise=0.05), until="params<=5k", method=method)
        event = grower.step(0, None, F.cross_entropy)
        assert event is not None and event.max_change > 1e-4


def test_settings_of_the_random_method_are_kept() -> None:
    grower = start(eager(deepen=False, widen=3), method=Random(outgoing_scale=0.5))
    event = grower.step(0, None, F.cross_entropy)
    assert event is not None and event.max_change > 1e-4


def test_where_growth_may_happen() -> None:
    grower = start(eager(within=["3", "5"]))
    events = train(grower, range(3))
    assert {change.target for event in events for change in event.changes} <= {"3", "5"}
    limited = start(eager(widen=0, max_layers=1))
    train(limited, range(4))
    sites = [change.target for event in limited.events for change in event.changes]
    assert len(sites) == len(set(sites)) and limited.decisions[-1].winner is None
    blocks = start(eager(blocks=["0", "3"], deepen=False, widen=2))
    event = blocks.step(0, None, F.cross_entropy)
    assert event is not None and event.changes[0].target in ("0", "3")


def test_averaged_copies_and_low_precision_models_follow() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make().to(dtype)
        ema = torch.optim.swa_utils.AveragedModel(model)
        grower = auxin.Grower(model, None, X[:2].to(dtype), trigger=eager(), ema=[ema])
        for epoch in range(3):
            assert grower.step(epoch, None, F.cross_entropy) is not None
        kinds = {change.kind for event in grower.events for change in event.changes}
        assert kinds
        assert all(p.dtype == dtype for p in model.parameters())
        assert [p.shape for p in ema.module.parameters()] == [p.shape for p in model.parameters()]
        assert torch.isfinite(model(X.to(dtype))).all()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "tau": ({"tau": -1}, "0 or more"),
    "alpha": ({"alpha": -0.1}, "0 or more"),
    "cooldown": ({"cooldown": -1}, "0 or more"),
    "penalty": ({"penalty": -1e-7}, "0 or more"),
    "widen": ({"widen": -2}, "0 or more"),
    "not a number": ({"tau": math.nan}, "0 or more"),
    "nothing": ({"widen": 0, "deepen": False}, "neither widen nor deepen"),
    "samples": ({"num_samples": 1}, "at least 2 samples"),
    "start": ({"start": 0}, "epoch 1 or later"),
    "damping": ({"damping": 0.0}, "damping"),
    "damping nan": ({"damping": math.nan}, "damping"),
    "form": ({"form": "exact"}, "no form 'exact'"),
    "fisher": ({"fisher": "exact"}, "no Fisher matrix 'exact'"),
    "memory": ({"memory": "lots"}, "amount of memory"),
    "target": ({"target": 0}, "target"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_sentence(name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(ConfigError, match=words) as caught:
        auxin.natural(**given)
    one_sentence(caught.value)


def one_sentence(error: AuxinError) -> None:
    assert "\n" not in str(error) and len(str(error)) < 250


def test_bad_calls_are_one_sentence_and_leave_no_decision() -> None:
    plain = start(auxin.natural())
    for arguments, words in (
        ((0,), "looks at data"),
        ((0, [DATA]), "loss_fn"),
        ((0, [], F.cross_entropy), "no batch"),
        ((0, [X], F.cross_entropy), "pairs"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            plain.step(*arguments)
        one_sentence(caught.value)
    with pytest.raises(ConfigError, match="trigger of a Grower"):
        auxin.natural()(0, {})
    with pytest.raises(ConfigError, match="Nothing inside 'features'"):
        start(eager(within=["features"])).step(0, None, F.cross_entropy)
    assert plain.decisions == [] and plain.events == []


@pytest.mark.parametrize("form", ["gram", "diagonal"])
def test_a_model_that_has_diverged_is_one_sentence(form: Any) -> None:
    def not_finite(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output * math.inf, target)

    def diverged() -> nn.Module:
        model = make()
        with torch.no_grad():
            model[0].weight[0] = math.nan
        return model

    for model, data, loss in (
        (make(), (X * math.nan, Y), F.cross_entropy), (make(), DATA, not_finite), (diverged(), DATA, F.cross_entropy)
    ):  # fmt: skip
        for damping in (None, 1e-2):
            grower = start(auxin.natural(data=data, form=form, damping=damping), copy.deepcopy(model))
            with pytest.raises(TrainingError, match="not finite") as caught:
                grower.step(0, None, loss)
            one_sentence(caught.value)
            assert grower.decisions == [] and grower.events == []


def test_settings_are_checked_before_any_run() -> None:
    assert auxin.natural().settings == Settings()
    assert auxin.natural(form="kfac", fisher="ggn", target=0.3, memory=1e6, chunk=4).settings == Settings(
        "kfac", "ggn", 0.3, 1e6, 4
    )


@pytest.mark.parametrize(
    ("name", "kwargs"), [("vgg16", {"width": 4}), ("resnet20", {"width": 4}), ("vit", {"dim": 16})]
)
def test_the_same_trigger_drives_any_model(name: str, kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(name, **kwargs)
    x, y = torch.randn(24, 3, 32, 32), torch.arange(24) % 10
    optimizer = torch.optim.Adam(model.parameters())
    grower = auxin.Grower(model, optimizer, x[:1], trigger=auxin.natural(tau=1.0, most=2, data=(x, y)))
    before = grower.graph.num_parameters()
    for epoch in range(2):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        event = grower.step(epoch, None, F.cross_entropy)
        assert event is not None and event.max_change < 1e-4
    assert grower.graph.num_parameters() > before
    assert {candidate.kind for candidate in grower.decisions[0].proposals} == {"widen", "deepen"}
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("form", ["gram", "diagonal", "kfac"])
def test_without_a_gradient_nothing_grows_and_nothing_fails(form: Any) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)), torch.randn(20, 4)
    with torch.no_grad():
        model[2].bias.fill_(50.0)
    trigger = auxin.natural(data=(x, torch.ones(20)), form=form)
    grower = auxin.Grower(model, None, x[:2], trigger=trigger)
    assert grower.step(0, None, lambda y, t: F.relu(1 - t * y.squeeze(1)).mean()) is None  # every margin is met
    assert grower.decisions[-1].plan is None


@pytest.mark.parametrize("kind", ["empirical", "sampled", "ggn"])
def test_float32_scores_of_proposals_are_close_to_float64_ones(kind: Any) -> None:
    torch.manual_seed(1)
    model = make()
    x = torch.randn(256, 3, 6, 6) + 0.7 * torch.randn(4, 3, 1, 1)[(y := torch.randint(4, (256,)))]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def ratios(model: nn.Module, x: Tensor) -> dict[str, float]:
        graph = auxin.trace(model, x[:2])
        samples, loss = gather(model, (x[:64], y[:64]), F.cross_entropy, 64)
        now, _, scored = score_proposals(
            model, graph, make_proposals(model, graph), samples, loss, Settings("gram", kind), damping=1e-5
        )
        return {proposal.key: proposal.score / now for proposal in scored}

    single, double = ratios(model, x), ratios(copy.deepcopy(model).double(), x.double())
    gains = {key: ratio - 1 for key, ratio in double.items()}
    assert all(abs(single[key] - double[key]) < 0.05 * max(gains.values()) for key in gains)
