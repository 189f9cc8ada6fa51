"""Grower: the one object a training loop talks to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from auxin.arguments import check_arguments
from auxin.budgets import Allocated, Amount, parse_cap
from auxin.errors import CheckpointError, ConfigError, GrowthError
from auxin.graph import Graph, trace
from auxin.graph.capture import refuse_sharded, unwrap
from auxin.graph.values import INPUT, OUTPUT
from auxin.methods import find_method
from auxin.methods.random import Random
from auxin.planned import Planned
from auxin.ranking import decide
from auxin.similarity import Refinement, Similarity, batch_norms, model_inputs
from auxin.surgery import History, apply, check_widen
from auxin.surgery.averages import averaged_copies
from auxin.surgery.optimizer import parameter_order
from auxin.surgery.param_groups import as_list
from auxin.trial import resisting_groups
from auxin.types import (
    Budget,
    Decider,
    Decision,
    Deepen,
    Event,
    GrowthPlan,
    LossFn,
    Method,
    Trigger,
    Widen,
)  # fmt: skip


class Grower:
    """Grows a model between epochs of a training loop.

    Args:
        model: Any module; grown in place, also behind ``torch.compile``.
        optimizer: Its optimizer or optimizers; their state is carried entry by entry.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments of the forward.
        method: A method or its name in ``METHODS``.
        trigger: When to grow; None never does by itself (call ``grow``). ``auxin.natural()`` and ``auxin.planned()``
            also say what.
        budget: How much; None grows nothing by itself, unless the trigger says what.
        until: A final cap such as ``"params<=325k"``, or several with commas between them; the last event is shrunk
            to fit.
        seed: Seed of the new weights; the same seed gives the same growth, also after a resume.
        allow_inexact: Whether groups whose growth changes the function may grow.
        carry_state: Whether the optimizer keeps its state across an event; False starts it anew.
        ema: An averaged copy of the model (``AveragedModel``), or several, resized alike.
        refine: What to do to the neurons right after each event; None does nothing.

    Raises:
        ConfigError: If an argument is of another kind, the optimizer or an averaged copy is another model's, or nothing
            that the budget counts can grow.
        FrozenError: If a group that the budget names may not grow.
        TraceError: If the forward cannot be captured.

    Attributes:
        graph: What can grow; kept up to date.
        history: The events so far, replayable on a fresh base model.
        decisions: What a trigger such as ``auxin.natural()`` decided each time it was asked, with its reason.
        refinement: What the last event's refinement did, layer by layer.
        resisting: Groups that the model turned out to resist the growth of, frozen since, each with the reason.
        epoch: The last epoch that ``step`` was called for; -1 before the first.

    Example:
        >>> import torch, auxin
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> grower = auxin.Grower(model, optimizer, torch.randn(2, 4), trigger=auxin.every(2), budget=auxin.ratio(0.5))
        >>> [epoch for epoch in range(4) if grower.step(epoch)]
        [1, 3]
        >>> model[0].out_features
        18
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        example_inputs: Any,
        *,
        method: str | Method = "random",
        trigger: Trigger | Decider | None = None,
        budget: Budget | None = None,
        until: str | None = None,
        seed: int = 0,
        allow_inexact: bool = False,
        carry_state: bool = True,
        ema: nn.Module | Sequence[nn.Module] = (),
        refine: Similarity | None = None,
    ) -> None:
        check_arguments(model, optimizer, method, trigger, budget, until, refine)
        self.model, self.optimizer = unwrap(model), optimizer
        self.ema = averaged_copies(self.model, ema)
        self.method = find_method(method)
        self.trigger, self.budget, self.seed = trigger, budget, seed
        self.cap = parse_cap(until) if until else None
        self.allow_inexact, self.carry_state = allow_inexact, carry_state
        if isinstance(budget, Amount) and (allow_inexact or budget.allow_inexact):  # said once is enough
            self.allow_inexact, self.budget = True, replace(budget, allow_inexact=True)
        self.refine = refine
        self.refinement: Refinement | None = None
        self.graph: Graph = trace(model, example_inputs)
        self.history = History()
        self.decisions: list[Decision] = []
        self.resisting: dict[str, str] = {}
        self.epoch = -1
        if isinstance(trigger, Planned):
            trigger.check(self.graph)
        if isinstance(self.budget, Amount) and not isinstance(trigger, Decider):
            if not self.budget.sizes(self.graph):
                raise ConfigError(_why_nothing_grows(self.graph))
            for name in self.budget.groups or ():
                check_widen(self.graph, Widen(name, 1), self.allow_inexact)

    @property
    def events(self) -> list[Event]:
        """The events so far, oldest first."""
        return self.history.events

    @torch.inference_mode(False)  # gradients are needed
    def step(
        self,
        epoch: int,
        loader: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Event | None:
        """Grow if the trigger says so; call it once after each epoch.

        Args:
            epoch: The epoch that has just been trained, 0 for the first.
            loader: Batches for methods that look at data.
            loss_fn: The training loss, for methods that look at gradients.
            metrics: What triggers such as ``plateau`` watch, for example ``{"val_loss": 1.2}``.

        Returns:
            The event, or None if nothing grew.
        """
        event = None
        if isinstance(self.trigger, Decider):
            trigger = self.trigger
            event = self._without_resisting(lambda: self._decide(trigger, epoch, loader, loss_fn))
        elif self.trigger is not None and (reason := self.trigger(epoch, metrics or {})) is not None:
            event = self.grow(epoch=epoch, reason=reason, loader=loader, loss_fn=loss_fn)
        self.epoch = epoch
        return event

    @torch.inference_mode(False)
    def grow(
        self,
        *,
        epoch: int | None = None,
        reason: str = "asked for",
        loader: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
    ) -> Event | None:
        """Grow by the budget now.

        Args:
            epoch: Recorded in the event.
            reason: Recorded in the event.
            loader: Batches for methods that look at data.
            loss_fn: The training loss, for methods that look at gradients.

        Returns:
            The event, or None if the budget or the cap leaves nothing to grow.

        Raises:
            ConfigError: If there is no budget.
            GrowthError: If the model resists the growth of every group that there is.
            TraceError: If the model has been sharded since the Grower was made.
        """
        if self.budget is None:
            raise ConfigError("The Grower has no budget; pass for example budget=auxin.ratio(0.35).")
        budget = self.budget

        def attempt() -> Event | None:
            allocated = decide(budget, self.graph, self.cap)
            if not allocated.units:
                return None
            plan = self.method.propose(
                self.model, self.graph, allocated, generator=self._generator(), batches=loader, loss_fn=loss_fn
            )
            return self.apply(plan, epoch=epoch, reason=reason, loader=loader)

        return self._without_resisting(attempt)

    def apply(
        self,
        plan: GrowthPlan,
        *,
        epoch: int | None = None,
        reason: str = "",
        batches: Iterable[Any] | None = None,
        loader: Iterable[Any] | None = None,
    ) -> Event:
        """Carry out any plan on the model and everything that follows it, and record the event.

        Args:
            plan: What to do.
            epoch: Recorded in the event.
            reason: Recorded in the event.
            batches: Model inputs for calibrating inserted norms; the example inputs if None.
            loader: Training batches for re-estimating norms after a refinement, if there are no ``batches``.

        Returns:
            The event.

        Raises:
            ConfigError: If the refinement re-estimates batch norms and there is nothing to do it on.
        """
        batches = None if batches is None else list(batches)
        blind = batches is None and loader is None
        if blind and self.refine is not None and self.refine.reestimate_norms and batch_norms(self.model):
            raise ConfigError("The refinement re-estimates batch norms: give step a loader, or reestimate_norms=0.")
        event = apply(
            plan,
            self.model,
            self.graph,
            optimizer=self.optimizer,
            ema=self.ema,
            batches=batches,
            allow_inexact=self.allow_inexact,
            carry_state=self.carry_state,
            generator=self._generator(),
        )
        event = replace(event, epoch=epoch, reason=reason)
        self.history.append(event)
        if self.refine is not None:
            if batches is None and loader is not None:
                batches = (model_inputs(batch, self.graph.example_inputs) for batch in loader)
            event = self.history.events[-1] = self._refined(self.refine, event, plan, batches)
        return event

    def _without_resisting(self, attempt: Callable[[], Event | None]) -> Event | None:
        """Return what an attempt to grow gives, where it fails after freezing the groups that the model resists."""
        refuse_sharded(self.model)
        decided, save = len(self.decisions), getattr(self.trigger, "state_dict", None)
        state = save() if save else None
        self._freeze_resisting()  # a graph traced anew does not know them
        try:
            return attempt()
        except GrowthError as error:
            first, known = error, self.graph.attributes
            resisting = resisting_groups(self.model, self.graph, self.allow_inexact)
            if not resisting and self.graph.attributes == known:
                raise
            self.resisting |= resisting
            self._freeze_resisting()
        del self.decisions[decided:]
        if state is not None:
            self.trigger.load_state_dict(state)  # type: ignore[union-attr]
        event = attempt()
        notes = tuple(f"{name} is frozen from now on: {why}" for name, why in resisting.items())
        if event is not None:
            event = self.history.events[-1] = replace(event, notes=(*event.notes, *notes))
        elif len(self.decisions) > decided:
            last = self.decisions[-1]
            self.decisions[-1] = replace(last, reason="; ".join([last.reason, *notes]))
        else:  # nothing else can grow
            raise first
        return event

    def _freeze_resisting(self) -> None:
        there = {group.name for group in self.graph.groups}
        for name in self.resisting.keys() & there:
            self.graph.atom(name).frozen = self.resisting[name]

    def _decide(
        self, trigger: Decider, epoch: int, loader: Iterable[Any] | None, loss_fn: LossFn | None
    ) -> Event | None:  # fmt: skip
        decision = trigger.decide(
            self.model, self.graph, epoch=epoch, loader=loader, loss_fn=loss_fn, cap=self.cap,
            generator=self._generator(),
        )  # fmt: skip
        if decision is None:
            return None
        self.decisions.append(decision)
        if decision.plan is None:
            return None
        plan = decision.plan
        wider = [op for op in plan.operations if isinstance(op, Widen)]
        # The natural trigger has drawn its units as Random does; they are what it scored.
        if wider and not (self.method == Random() and all(op.values for op in wider)):
            weights = self.method.propose(
                self.model, self.graph, Allocated({op.group: op.by for op in wider}), generator=self._generator(),
                batches=loader, loss_fn=loss_fn,
            )  # fmt: skip
            plan = replace(
                weights,
                method=f"{plan.method}, {weights.method}",
                operations=(*weights.operations, *(op for op in plan.operations if isinstance(op, Deepen))),
                preserves=weights.preserves and plan.preserves,
            )
        batches = decision.batches or None  # none: the example inputs calibrate new norms
        return self.apply(plan, epoch=epoch, reason=decision.reason, batches=batches, loader=loader)

    def _refined(self, how: Similarity, event: Event, plan: GrowthPlan, batches: Iterable[Any] | None) -> Event:
        done = self.refinement = how.refine(
            self.model, graph=self.graph, event=event, plan=plan, batches=batches, ema=self.ema
        )
        # The sentence holds no times, so that equal runs have equal histories but for their seconds.
        seconds = event.seconds + done.seconds + done.norm_seconds
        return replace(event, seconds=seconds, notes=(*event.notes, str(done), *done.notes))

    def _generator(self) -> torch.Generator:
        """Return the generator of the next event, which depends only on the seed and the number of events."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + len(self.events))

    def state_dict(self) -> dict[str, Any]:
        """Return, as JSON data, what a resumed run needs besides model and optimizer."""
        state = getattr(self.trigger, "state_dict", None)
        return {
            "history": self.history.to_json(),
            "epoch": self.epoch,
            "resisting": self.resisting,
            "trigger": state() if state else None,
            "decisions": [decision.to_dict() for decision in self.decisions],
            "optimizers": parameter_order(self.model, as_list(self.optimizer)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` left off; the model must already have the history's shape.

        Args:
            state: What ``state_dict`` returned.

        Raises:
            CheckpointError: If the state belongs to another kind of trigger, the model has another size, or an
                optimizer has its parameters in another order, by which PyTorch would give them each other's state.
        """
        missing = {"history", "trigger"} - set(state)
        if missing:
            raise CheckpointError(
                f"This is not what Grower.state_dict() returned: it has no {', '.join(sorted(missing))}."
            )
        history = History.from_json(state["history"])
        if history.events and history.events[-1].parameters_after != self.graph.num_parameters():
            raise CheckpointError(
                f"The history ends at {history.events[-1].parameters_after:,} parameters but the model has "
                f"{self.graph.num_parameters():,}; replay the history on a fresh base model before resuming."
            )
        order, now = state.get("optimizers"), parameter_order(self.model, as_list(self.optimizer))
        if order and now and order != now:
            raise CheckpointError(
                "The optimizer has its parameters in another order than the saved one had, and its state goes by the "
                "order: build it on the base model and give both to History.replay. For an optimizer that starts anew "
                "take 'optimizers' out of the state."
            )
        load = getattr(self.trigger, "load_state_dict", None)
        if (state.get("trigger") is None) != (load is None):
            raise CheckpointError("The saved run used another kind of trigger; resume it with the same one.")
        if load is not None:
            load(state["trigger"])
        self.history = history
        self.resisting = dict(state.get("resisting", {}))
        self._freeze_resisting()
        self.epoch = state.get("epoch", max((e.epoch for e in history.events if e.epoch is not None), default=-1))
        self.decisions = [Decision.from_dict(decision) for decision in state.get("decisions", ())]


def _why_nothing_grows(graph: Graph) -> str:
    hidden = [group for group in graph.groups if group.size > 1 and group.frozen not in (INPUT, OUTPUT)]
    why = [f"{group.name}: {group.frozen or group.inexact}" for group in hidden]
    reasons = "; ".join(why[:2]) or "it has no hidden units"
    return (
        f"No width group of this model can grow with its function preserved ({reasons}); "
        "print(auxin.trace(model, example_inputs)) gives every reason. Where a group is only inexact, "
        "Grower(..., allow_inexact=True) grows it all the same; layers come by auxin.natural."
    )
