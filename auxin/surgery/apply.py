"""Carry out a plan: the only door through which a model or an optimizer is changed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auxin.errors import AuxinError, ConfigError, GrowthError
from auxin.graph import Graph, trace
from auxin.graph.axes import Atom
from auxin.graph.capture import (
    clone_tensors,
    evaluation,
    kept_buffers,
    kept_parameters,
    normalise_inputs,
    outputs_of,
    refuse_sharded,
    restore_buffers,
    unwrap,
)
from auxin.graph.lines import resisting_line
from auxin.surgery.averages import averaged_copies
from auxin.surgery.blocks import GROWN
from auxin.surgery.configs import config_sizes, update_configs
from auxin.surgery.deepen import check_deepen, deepen_model
from auxin.surgery.missed import missed_size
from auxin.surgery.param_groups import as_list, check_optimizers
from auxin.surgery.preserved import compare, require_preserved
from auxin.surgery.transaction import Transaction
from auxin.surgery.widen import Lift, check_widen, set_size, widen_model
from auxin.types import Change, Deepen, Event, GrowthPlan, Structure, Widen


@torch.inference_mode(False)  # parameters made in that mode could not be trained
def apply(
    plan: GrowthPlan,
    model: nn.Module,
    graph: Graph,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    ema: nn.Module | Sequence[nn.Module] = (),
    batches: Iterable[Any] | None = None,
    allow_inexact: bool = False,
    carry_state: bool = True,
    generator: torch.Generator | None = None,
    keep: bool = True,
) -> Event:
    """Carry out a plan in place, or leave everything as it was.

    Before and after, the graph's example inputs run through the model in eval mode, and once more in training mode,
    where it runs in that without growth. On any error (a hard-coded view, a wrong shape, an output that changed
    although the plan promised it would not) model, optimizer and graph are restored bit for bit.

    Args:
        plan: What to do.
        model: The model; parameters keep their identity and change their contents.
        graph: Its graph, kept up to date.
        optimizer: Its optimizer or optimizers; their state is carried entry by entry.
        ema: An averaged copy of the model, or several (``torch.optim.swa_utils.AveragedModel``), resized alike.
        batches: Model inputs for calibrating inserted norms; the example inputs if None.
        allow_inexact: Whether to grow groups whose growth changes the function.
        carry_state: Whether the optimizer keeps its state; False starts all of it anew.
        generator: Source of randomness, if the plan asks for noise.
        keep: False takes everything back after the checks, to see whether the plan would work.

    Returns:
        What changed.

    Raises:
        GrowthError: If the grown model does not run or computes something else; everything is restored.
        ConfigError: If the plan makes no sense for this model, the optimizer or an averaged copy is another one's, or
            the example inputs no longer run.
        FrozenError: If a group may not grow.
        TraceError: If the model has been sharded since it was traced.
    """
    started = time.perf_counter()
    model = unwrap(model)
    refuse_sharded(model)
    optimizers = as_list(optimizer)
    check_optimizers(model, optimizers)
    copies = averaged_copies(model, ema)
    generator = generator or torch.Generator().manual_seed(0)
    if not plan.operations:
        raise ConfigError("The plan has no operations; nothing would grow.")
    _check_graph(model, graph)
    exact = plan.preserves and not allow_inexact
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = clone_tensors(normalise_inputs(graph.example_inputs), _device(model))
    before = _outputs(model, inputs)
    trains = _training_error(model, inputs) is None
    parameters, flops = graph.num_parameters(), graph.flops()
    change = Transaction()
    configured, attributes = config_sizes(model), graph.attributes
    calibration = list(batches) if batches is not None else None
    current = ""
    try:
        if not carry_state:
            for one in optimizers:
                change.clear(one.state)
        work = _Work(model, graph, optimizers, copies, calibration, generator, change, allow_inexact)
        for op in plan.operations:
            current = op.group if isinstance(op, Widen) else op.site
            work.carry_out(op)
        work.structure_attributes.update(update_configs(model, configured, change))
        after = work.run(inputs)
        moved = compare(before, after)
        if exact:
            require_preserved(moved, model, inputs)
        if trains and (failed := _training_error(model, inputs)) is not None:
            reason = str(failed).strip().split("\n")[0] or type(failed).__name__
            raise GrowthError(
                f"the forward in training mode fails at {resisting_line(failed)}: {reason}; what it uses there is not "
                "part of the traced forward, in eval mode"
            ) from failed
        work.retrace()
    except BaseException as error:
        change.rollback()
        graph.attributes = attributes
        restore_buffers(model, buffers)
        if not isinstance(error, Exception) or isinstance(error, ConfigError):
            raise
        explained = _explain(error, plan, current, graph)
        raise explained from error
    restore_buffers(model, buffers)
    event = Event(
        method=plan.method,
        changes=tuple(work.changes),
        parameters_before=parameters,
        parameters_after=graph.num_parameters(),
        flops_before=flops,
        flops_after=graph.flops(),
        max_change=max((output.change for output in moved), default=0.0),
        seconds=time.perf_counter() - started,
        structure=Structure(
            {path: tuple(blocks) for path, blocks in work.blocks.items()}, work.shapes, work.structure_attributes
        ),
        notes=(*plan.notes, *work.notes),
    )
    if not keep:
        change.rollback()
    return event


class _Work:
    """The running state of one plan."""

    def __init__(
        self, model: nn.Module, graph: Graph, optimizers: list[Optimizer], copies: list[nn.Module],
        batches: list[Any] | None, generator: torch.Generator, change: Transaction, allow_inexact: bool,
    ) -> None:  # fmt: skip
        self.model, self.graph, self.optimizers, self.copies = model, graph, optimizers, copies
        self.batches, self.generator, self.change, self.allow_inexact = batches, generator, change, allow_inexact
        self.lift = Lift()
        self.stale = False
        self.changes: list[Change] = []
        self.blocks: dict[str, list[dict[str, Any]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.structure_attributes: dict[str, Any] = {}
        self.before: dict[Atom, int] = {}
        self.notes: list[str] = []

    def carry_out(self, op: Widen | Deepen) -> None:
        if isinstance(op, Widen):
            self.retrace()
            check_widen(self.graph, op, self.allow_inexact)
            size = self.graph[op.group].size
            self._note_untrained(op.group)
            self.before.setdefault(self.graph.atom(op.group), size)
            shapes, attributes = widen_model(
                self.model, self.graph, op, self.optimizers, self.copies, self.lift, self.change
            )
            self.shapes |= shapes
            self.structure_attributes |= attributes
            self.changes.append(Change("widen", op.group, size, size + op.by))
            return
        check_deepen(self.graph, self.model, op)
        options = deepen_model(
            self.model, self.graph, op, self.optimizers, self.copies, self.batches, self.generator, self.change
        )
        depth = len(self.model.get_submodule(f"{op.site}.{GROWN}")._modules)
        if "neutral" in options:
            self._size_copy(op.site, f"{op.site}.{GROWN}.{depth - 1}")
        self.blocks.setdefault(op.site, []).append(options)
        self.changes.append(Change("deepen", op.site, depth - 1, depth))
        self.stale = True

    def _note_untrained(self, group: str) -> None:
        """Note that the weights which compute a group's units are trained by nobody, so that new ones stay as drawn."""
        trained = {id(p) for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]}
        parameters = dict(self.model.named_parameters())
        names = sorted({slot.parameter for slot in self.graph[group].slots if slot.role == "producer"} & {*parameters})
        idle = [name for name in names if not parameters[name].requires_grad or id(parameters[name]) not in trained]
        if self.optimizers and idle and len(idle) == len(names):
            self.notes.append(
                f"group {group}: no optimizer trains {', '.join(idle)}, so its new entries stay as they are"
            )

    def _size_copy(self, site: str, block: str) -> None:
        """Note for a copy what has been resized in its module before: a replay copies the module as it was before."""
        for sizes in (self.shapes, self.structure_attributes):
            inner = {name: size for name, size in sizes.items() if name.startswith((f"{site}.", f"{site}:"))}
            sizes |= {
                block + name.removeprefix(site): size
                for name, size in inner.items() if not name.startswith(f"{site}.{GROWN}.")
            }  # fmt: skip

    def run(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
        """Return the grown model's outputs; sizes that the trace could not see follow on the way."""
        while True:
            try:
                return outputs_of(self.model, inputs)
            except Exception as error:
                found = missed_size(error, self.model, self.graph, self.before)
                if found is None:
                    raise
            # It belongs to the graph from now on, also if the plan is only tried.
            self.graph.attributes = (*self.graph.attributes, found)
            self.structure_attributes |= set_size([self.model, *self.copies], found, self.change)

    def retrace(self) -> None:
        """Bring the graph up to date after insertions."""
        if not self.stale:
            return
        old = dict(self.graph.__dict__)
        self.change.on_rollback(lambda: self.graph.__dict__.update(old))
        self.graph.__dict__.update(trace(self.model, self.graph.example_inputs).__dict__)
        self.stale = False


def _device(model: nn.Module) -> torch.device | None:
    """Return where the model lives now, which may not be where it was traced."""
    return next((p.device for p in model.parameters()), None)


def _check_graph(model: nn.Module, graph: Graph) -> None:
    """Refuse a graph that is another model's, or of another time."""
    parameters = dict(model.named_parameters())  # a buffer may have another size by now, such as a cache
    for name in (name for name in graph.axes if name in graph.parameters):
        sizes = [axis.size for axis in graph.axes[name]]
        there = list(parameters[name].shape) if name in parameters else "none"
        if there != sizes:
            raise ConfigError(
                f"The graph does not fit the model: it has {name} of sizes {sizes}, the model {there}. Trace the model "
                "that is to grow."
            )


def _outputs(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    """Return the model's outputs before growth."""
    try:
        return outputs_of(model, inputs)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"The example inputs do not run through the model any more ({reason}): if it has another type or forward "
            "since it was traced, trace it again with inputs of its own, or make a new Grower."
        ) from error


@torch.no_grad()
def _training_error(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Exception | None:
    """Return the error of a forward in training mode, which may use layers that the one in eval mode does not."""
    args, kwargs = clone_tensors(inputs)
    try:
        with (
            kept_parameters(model), kept_buffers(model), evaluation(model), torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")  # for example of checkpointed activations without gradients
            for module in model.modules():
                module.training = True
            model(*args, **kwargs)
    except Exception as error:
        return error
    return None


def _explain(error: Exception, plan: GrowthPlan, current: str, graph: Graph) -> GrowthError | AuxinError:
    """Say which group resisted and where."""
    if isinstance(error, AuxinError) and not isinstance(error, GrowthError):
        return error
    names = [op.group if isinstance(op, Widen) else op.site for op in plan.operations]
    what = f"group {current!r}" if len(names) == 1 else f"the groups {', '.join(map(repr, names[:5]))}"
    if len(names) > 5:
        what += f" and {len(names) - 5} more"
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    line = "" if isinstance(error, GrowthError) else resisting_line(error)
    where = f" at {line}" if line else ""
    advice = (
        "Derive the size from the tensor that has it (x.shape, -1), or keep it in an attribute of its own, such as "
        "self.head_dim."
    )
    return GrowthError(
        f"Growing {what} failed{where} ({reason}); model, optimizer and graph are as they were. {advice}",
        f"its growth fails{where} ({reason})",
    )
