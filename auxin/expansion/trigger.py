"""The natural trigger: one score decides when, where and whether to add layers or units."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auxin.budgets import Cap
from auxin.errors import ConfigError
from auxin.expansion.proposals import Proposal, make_proposals
from auxin.expansion.score import Form, Settings, expansion_score, gather
from auxin.expansion.scoring import NUM_CALIBRATION, score_proposals
from auxin.graph import Graph
from auxin.graph.capture import unwrap
from auxin.statistics.fisher import FisherKind
from auxin.statistics.persample import take
from auxin.types import Candidate, Decision, Deepen, GrowthPlan, LossFn, Widen

NOTHING_FITS = "nothing that may grow fits the limits"
"""Reason of a decision that had no proposal."""


class Natural:
    """Grow where the expansion score gains most, as soon as it gains enough; pass it as ``trigger`` of a ``Grower``.

        η = gᵀ(F + λI)⁻¹g for the current model and for it with each proposal: an identity layer at a depth site, or
        more units in a width group. Grow the best if η_best · penalty / η_now > τ and η_best - η_now > α.

    λ is chosen anew at each decision so that the current model's score is mid-range (``target``; for another Fisher
    matrix than the empirical one, so that its effective rank is), unless ``damping`` fixes it. Every decision, also not
    to grow, is kept with its reason in ``Grower.decisions``.

    Args:
        tau: τ, the ratio of scores above which to grow.
        alpha: α, the smallest gain of the score.
        cooldown: Epochs after an event without a decision.
        start: First epoch after which to decide, counted from 1.
        times: Largest number of events, or None.
        most: Proposals to carry out in one event: the best ones of those that pass the test. Near a cap, one.
        widen: Units to add to each group; below 1, a share of its size; 0 never widens.
        deepen: Whether to add layers; ``copies`` adds copies of residual blocks and no plain layers.
        blocks: Module paths in each of which all groups widen together (SECNN's blocks); None treats groups alone.
        within: Module paths that growth is confined to, or None.
        max_layers: Layers that a site may be given.
        kernel_size: Of new convolutions.
        noise: Standard deviation of noise on new identity layers.
        penalty: λ_n of the paper: scores are multiplied by exp(-λ_n Δp²), Δp the parameters added.
        relative_penalty: The same by exp(-λ_r (Δc / c)²), with c the cost there is and Δc what the proposal adds.
        cost: What c counts: ``parameters`` or ``flops``.
        data: Held-out samples to score on: a pair (inputs, targets) or batches; None takes the loader given to
            ``Grower.step``, whose first samples should then be the same each time and not augmented.
        num_samples: Samples to score on.
        form: ``gram`` (exact), ``blockwise``, ``diagonal`` or ``kfac``.
        fisher: ``empirical``, ``sampled`` or ``ggn``.
        damping: λ, or None to choose it.
        target: Where the current model's score shall lie then.
        memory: Bytes for stored per-sample gradients.
        chunk: Samples in one forward.
        seed: Of drawn labels.

    Raises:
        ConfigError: If an option has no meaning.

    Reference:
        Appolinary et al. 2024 (arXiv 2401.05686), algorithm 1; Mitchell et al. 2023 (arXiv 2307.04526).

    Example:
        >>> import torch, auxin
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(3, (64,))
        >>> grower = auxin.Grower(model, None, x[:1], trigger=auxin.natural(tau=1.0, data=(x, y)))
        >>> event = grower.step(0, None, nn.functional.cross_entropy)
        >>> grower.decisions[0].winner == f"{event.changes[0].kind} {event.changes[0].target}"
        True
    """

    expansion_score = staticmethod(expansion_score)

    def __init__(
        self,
        tau: float = 1.1,
        alpha: float = 0.0,
        cooldown: int = 0,
        *,
        start: int = 1,
        times: int | None = None,
        most: int = 1,
        widen: float = 4,
        deepen: bool | Literal["copies"] = True,
        blocks: Sequence[str] | None = None,
        within: Sequence[str] | None = None,
        max_layers: int | None = 10,
        kernel_size: int = 3,
        noise: float = 0.0,
        penalty: float = 0.0,
        relative_penalty: float = 0.0,
        cost: Literal["parameters", "flops"] = "parameters",
        data: Any = None,
        num_samples: int = 512,
        form: Form = "gram",
        fisher: FisherKind = "empirical",
        damping: float | None = None,
        target: float = 0.5,
        memory: float | str = "64MB",
        chunk: int = 16,
        seed: int = 0,
    ) -> None:
        if not all(number >= 0 for number in (tau, alpha, cooldown, penalty, relative_penalty, widen)):
            raise ConfigError("natural() needs tau, alpha, cooldown, widen and penalties of 0 or more.")
        if not deepen and not widen:
            raise ConfigError("natural() may neither widen nor deepen; allow one of them.")
        if deepen not in (True, False, "copies"):
            raise ConfigError(f"natural() cannot deepen by {deepen!r}; give true, false or copies.")
        if cost not in ("parameters", "flops"):
            raise ConfigError(f"natural() cannot penalise {cost!r}; choose parameters or flops.")
        if num_samples < 2 or start < 1 or most < 1:
            raise ConfigError(
                "natural() needs at least 2 samples, 1 proposal an event, and a start of epoch 1 or later."
            )
        if damping is not None and not 0 < damping < math.inf:
            raise ConfigError(f"The damping of natural() is {damping}; give a number above 0, or None to choose one.")
        self.tau, self.alpha, self.cooldown, self.start, self.times = tau, alpha, cooldown, start, times
        self.most, self.cost = most, cost
        self.penalty, self.relative_penalty = penalty, relative_penalty
        self.data, self.num_samples, self.damping, self.seed = data, num_samples, damping, seed
        self.settings = Settings(form, fisher, target, memory, chunk)
        self.options: dict[str, Any] = {
            "widen": widen, "deepen": deepen, "blocks": blocks, "within": within, "max_layers": max_layers,
            "kernel_size": kernel_size, "noise": noise,
        }  # fmt: skip
        self.fired = 0
        self.last: int | None = None

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> str | None:
        """Refuse: this trigger also says what to grow, which takes a model and data."""
        raise ConfigError("natural() decides what to grow as well: use it as trigger of a Grower, or call its decide.")

    def decide(
        self,
        model: nn.Module,
        graph: Graph,
        *,
        epoch: int,
        loader: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        cap: Cap | None = None,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Return whether and what to grow after an epoch; neither model nor graph is touched.

        Args:
            model: The model.
            graph: Its graph.
            epoch: The epoch just trained, 0 for the first.
            loader: Batches to score on, if the trigger has no data of its own.
            loss_fn: The loss of (output, target), a mean over samples.
            cap: A size that growth may not exceed.
            generator: Source of new weights.

        Returns:
            The decision; its plan is what scored best.
        """
        started = time.perf_counter()
        waiting = self._waiting(epoch)
        if waiting is not None:
            return Decision(epoch, waiting)
        model = unwrap(model)
        proposals = make_proposals(model, graph, cap=cap, generator=generator, **self.options)
        if not proposals:
            return Decision(epoch, NOTHING_FITS)
        samples, loss = gather(model, self.data if self.data is not None else loader, loss_fn, self.num_samples)
        score, damping, scored = score_proposals(
            model, graph, proposals, samples, loss, self.settings, damping=self.damping, seed=self.seed
        )
        size = graph.num_parameters() if self.cost == "parameters" else graph.flops()
        ranked = sorted(scored, key=lambda p: -self._penalised(p, size))
        winners = [p for p in ranked if self._passes(p, score, size)][: self.most]
        best = (winners or ranked)[0]
        while cap is not None and len(winners) > 1 and not _fit(graph, cap, winners):
            winners.pop()
        found = (
            f"{best.key} scores {best.score:.4g}, {self._ratio(best, score, size):.4g} times the current {score:.4g}"
            f"{' after the penalty for size' if self.penalty or self.relative_penalty else ''}"
        )
        if winners:
            self.fired += 1
            self.last = epoch
        elif self._ratio(best, score, size) <= self.tau:
            found += f", and tau is {self.tau:g}"
        else:
            found += f", a gain of at most alpha = {self.alpha:g}"
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        inputs = pytree.tree_map(
            lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x,
            take(samples, slice(0, NUM_CALIBRATION)).inputs,
        )
        return Decision(
            epoch,
            found,
            winner=", ".join(p.key for p in winners) or None,
            score=score,
            damping=damping,
            threshold=self.tau,
            proposals=tuple(
                Candidate(p.name, p.kind, p.score, self._ratio(p, score, size), p.parameters) for p in ranked
            ),
            seconds=time.perf_counter() - started,
            plan=_together(winners) if winners else None,
            batches=(inputs,) if winners else (),
        )

    def _ratio(self, proposal: Proposal, score: float, size: int) -> float:
        return self._penalised(proposal, size) / score if score > 0 else math.inf

    def _passes(self, proposal: Proposal, score: float, size: int) -> bool:
        return self._ratio(proposal, score, size) > self.tau and proposal.score - score > self.alpha

    def _waiting(self, epoch: int) -> str | None:
        if epoch + 1 < self.start:
            return f"decisions begin after epoch {self.start}"
        if self.times is not None and self.fired >= self.times:
            return f"all {self.times} events have happened"
        if self.last is not None and epoch - self.last <= self.cooldown:
            return f"epoch {epoch - self.last} of a cooldown of {self.cooldown}"
        return None

    def _penalised(self, proposal: Proposal, size: int) -> float:
        added = proposal.parameters if self.cost == "parameters" else proposal.flops
        exponent = self.penalty * proposal.parameters**2 + self.relative_penalty * (added / max(size, 1)) ** 2
        return proposal.score * math.exp(-exponent)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"fired": self.fired, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
        self.fired, self.last = state["fired"], state["last"]


def _together(proposals: Sequence[Proposal]) -> GrowthPlan:
    """Return one plan for several proposals; what is widened first, new layers are made as wide as."""
    operations = [op for proposal in proposals for op in proposal.plan.operations]
    return replace(
        proposals[0].plan,
        operations=tuple(sorted(operations, key=lambda op: isinstance(op, Deepen))),
        preserves=all(proposal.plan.preserves for proposal in proposals),
    )


def _fit(graph: Graph, cap: Cap, proposals: Sequence[Proposal]) -> bool:
    """Return whether a cap surely holds with several proposals at once; new layers may be made wider meanwhile."""
    operations = [op for proposal in proposals for op in proposal.plan.operations]
    sizes = {op.group: graph[op.group].size + op.by for op in operations if isinstance(op, Widen)}
    wider = max((size / graph[group].size for group, size in sizes.items()), default=1.0)
    layers = [proposal for proposal in proposals if proposal.kind == "deepen"]
    channels = sum(graph.site(op.site).channels for op in operations if isinstance(op, Deepen))
    return cap.allows(
        graph.num_parameters(sizes) + wider**2 * sum(layer.parameters for layer in layers),
        graph.flops(sizes) + wider**2 * sum(layer.flops for layer in layers),
        graph.num_neurons(sizes) + wider * channels,
    )
