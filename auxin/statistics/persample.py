"""Gradients of single samples, from what each layer reads and the gradient at what it writes.

One forward and one backward of a chunk of samples give both for all uses of parameters (``uses.py``) at once; weights
need no gradient of their own. What is used in a way that no rule knows is found by comparing with plain backward passes
of single samples, and then computed by those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from auxin.errors import ConfigError
from auxin.graph.capture import clone_tensors, normalise_inputs
from auxin.statistics.batches import Batch, in_precision, precision
from auxin.statistics.uses import Linear, Recorder, Use
from auxin.types import LossFn


@dataclass
class Attachment:
    """A layer that starts as the identity, tried at a module's output without being inserted.

    Since its output is its input, nothing else changes: its gradients follow from the edge and the gradient there.

    Attributes:
        block: The layer, in eval mode.
        prefix: Path that its parameters' names begin with.
        channel: Dimension of the channels, from the end (-1 is the last).
        kept: Channels of the edge that it is made for; None for all.
        learnt: Names of its parameters that have a gradient; None for all.
        matrices: Which of them are plain matrices, the positions that each is applied at and its bias; None until seen.
    """

    block: nn.Module
    prefix: str
    channel: int
    kept: Tensor | None = None
    learnt: frozenset[str] | None = None
    matrices: dict[str, tuple[int, str | None]] | None = None

    def named_parameters(self) -> dict[str, Tensor]:
        """Return those parameters under their full names."""
        return {f"{self.prefix}.{name}": p for name, p in self._parameters().items()}

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.block.named_parameters() if self.learnt is None or n in self.learnt}

    def of(self, edge: Tensor) -> Tensor:
        """Return the channels of an edge that it sees."""
        return edge if self.kept is None else edge.index_select(edge.ndim + self.channel, self.kept.to(edge.device))

    def local(self, x: Tensor, b: Tensor) -> list[tuple[Use, Tensor]]:
        """Return its own uses for an edge, with the gradient at each, from the gradient at the edge."""
        recorder = Recorder({id(p): name for name, p in self.named_parameters().items()})
        with torch.enable_grad(), recorder:
            y = self.block(self.of(x).detach())
        places = [use.y for use in recorder.uses]
        if recorder.unknown or not places:
            return [self._one_by_one(self.of(x).detach(), self.of(b))]
        return list(zip(recorder.uses, torch.autograd.grad(y, places, self.of(b), materialize_grads=True), strict=True))

    def _one_by_one(self, x: Tensor, b: Tensor) -> tuple[Use, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for i in range(len(x)):
            leaves = {n: p.detach().clone().requires_grad_() for n, p in self._parameters().items()}
            with torch.enable_grad():
                y = functional_call(self.block, leaves, (x[i : i + 1],))
            for name, g in zip(leaves, torch.autograd.grad(y, list(leaves.values()), b[i : i + 1]), strict=True):
                found.setdefault(f"{self.prefix}.{name}", []).append(g)
        rows = {name: torch.stack(parts) for name, parts in found.items()}
        return Use(b, {name: lambda _, name=name: rows[name] for name in rows}), b  # type: ignore[misc]


class PerSample:
    """Per-sample gradients of a model's parameters, a chunk of samples at a time.

    The model runs in eval mode, in fp32 or float64, and is only read. Where no use explains a parameter's gradient, or
    samples do not lie along dimension 0 of a use, single-sample backward passes take over (``slow``).

    Args:
        model: The model, already in ``measuring``.
        loss_fn: The loss of (output, target); that of one sample is ``loss_fn(output[i:i+1], target[i:i+1])``.
        probe: A few samples to compare with plain backward passes.
        names: The parameters to differentiate; the trainable ones if None.
        attached: Layers tried after modules, by the module's path; their parameters count as well.

    Attributes:
        parameters: The parameters to differentiate, detached, by name.
        slow: Names of those that need single-sample passes.
        positions: For each other one that is a plain matrix used once, its number of positions.
        biases: For each of those, the name of the bias used with it.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, probe: Batch, names: frozenset[str] | None = None,
        attached: Mapping[str, Attachment] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.loss_fn, self.attached = model, loss_fn, dict(attached or {})
        dtype = precision(model)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.state = {name: in_precision(tensor.detach(), dtype) for name, tensor in state.items()}
        if names is None:
            names = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        self.own = {name: self.state[name] for name, _ in model.named_parameters() if name in names}
        self.parameters = dict(self.own)
        for one in self.attached.values():
            self.parameters |= one.named_parameters()
        self.slow = {name for name, parameter in self.own.items() if parameter.is_complex()}
        self.positions: dict[str, int] = {}
        self.biases: dict[str, str] = {}
        self._local: tuple[Any, ...] = ()
        self._compare(take(probe, slice(0, 2)))

    def forward(self, batch: Batch, state: Mapping[str, Tensor], recorder: Recorder | None = None) -> Any:
        """Return the output for a batch with these parameters."""
        args, kwargs = clone_tensors(normalise_inputs(batch.inputs))
        frozen = {name: t.clone() if name not in self.own else state[name] for name, t in self.state.items()}
        if recorder is None:
            return functional_call(self.model, frozen, args, kwargs)
        edges: list[tuple[Attachment, Use, Tensor]] = []
        handles = [
            self.model.get_submodule(path).register_forward_hook(
                lambda module, args, output, one=one: self._edge(edges, one, output)
            )
            for path, one in self.attached.items()
            if one.named_parameters().keys() & set(recorder.names.values())
        ]
        try:
            with recorder:
                output = functional_call(self.model, frozen, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()
        # Not within the recorder, which would take what a tried layer does for the model's own.
        recorder.uses += [self._tried(one, use, x) for one, use, x in edges]
        return output

    @staticmethod
    def _edge(edges: list[tuple[Attachment, Use, Tensor]], one: Attachment, output: Tensor) -> Tensor:
        """Note an edge at which a layer is tried, and hand it on."""
        y = output if output.requires_grad else output.detach().requires_grad_()
        edges.append((one, Use(y, {}), y.detach()))
        return y.clone()

    def _tried(self, one: Attachment, use: Use, x: Tensor) -> Use:
        """Give the use of an edge the gradients of the layer that is tried there."""

        def local(b: Tensor) -> list[tuple[Use, Tensor]]:
            # One at a time: the intermediate values of all layers together would be large.
            if not self._local or self._local[0] is not x or self._local[1] is not b:
                self._local = (x, b, one.local(x, b))
            return self._local[2]

        def rows(b: Tensor, name: str) -> Tensor:
            return torch.stack([use.rows[name](g) for use, g in local(b) if name in use.rows]).sum(0)

        def read(name: str) -> Tensor:
            return next(use.linear[name].a() for use, _ in local(torch.zeros_like(x)) if name in use.linear)

        def write(b: Tensor, name: str) -> Tensor:
            return next(use.linear[name].b(g) for use, g in local(b) if name in use.linear)

        if one.matrices is None:
            found = [inner.linear for inner, _ in local(torch.zeros_like(x))]
            one.matrices = {name: (of.positions, of.bias) for linear in found for name, of in linear.items()}
        use.rows = {name: partial(rows, name=name) for name in one.named_parameters()}
        use.linear = {
            name: Linear(partial(read, name), partial(write, name=name), positions, bias)
            for name, (positions, bias) in one.matrices.items()
        }
        return use

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """Return the loss of each sample, shape (samples,)."""
        count = size(batch)
        return torch.stack([
            self.loss_fn(take_samples(output, slice(i, i + 1)), take_samples(batch.target, slice(i, i + 1))).sum()
            for i in range(count)
        ])  # fmt: skip

    def recorder(self, names: set[str] | None = None) -> Recorder:
        """Return a fresh recorder of some parameters' uses, or of all."""
        return Recorder({id(t): name for name, t in self.parameters.items() if names is None or name in names})

    def uses(
        self, batch: Batch, scalars: Callable[[Any, Batch], Sequence[Tensor]], recorder: Recorder | None = None
    ) -> tuple[list[Use], list[list[Tensor]]]:
        """Return the uses of one forward and, for each scalar, the gradient at each of them.

        Args:
            batch: The samples.
            scalars: From output and batch to sums over samples of what is to be differentiated.
            recorder: Notes the uses; a fresh one if None.

        Returns:
            Uses, and for each scalar one gradient per use.
        """
        recorder = recorder or self.recorder()
        output = self.forward(batch, self.parameters, recorder)
        wanted = scalars(output, batch)
        places = [use.y for use in recorder.uses]
        if not places:
            return [], [[] for _ in wanted]
        gradients = [
            list(torch.autograd.grad(s, places, retain_graph=k + 1 < len(wanted), materialize_grads=True))
            for k, s in enumerate(wanted)
        ]
        return recorder.uses, gradients

    def single(
        self, one: Batch, names: set[str], scalars: Callable[[Any, Batch], Sequence[Tensor]]
    ) -> dict[str, list[Tensor]]:
        """Return, for one sample, the gradients of some parameters by plain backward passes, one per scalar."""
        # All of an edge is this sample's, whichever of its dimensions samples lie along: the rows of what is attached
        # there, taken together, are its gradient.
        leaves = {name: self.own[name].clone().requires_grad_() for name in sorted(names & self.own.keys())}
        attached = names - self.own.keys()
        recorder = self.recorder(attached) if attached else None
        wanted = scalars(self.forward(one, {**self.own, **leaves}, recorder), one)
        uses = recorder.uses if recorder else []
        places = [*leaves.values(), *(use.y for use in uses)]
        result: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}
        for k, scalar in enumerate(wanted):
            if scalar.requires_grad:
                found = torch.autograd.grad(scalar, places, retain_graph=k + 1 < len(wanted), materialize_grads=True)
            else:  # the output has them detached only, as a codebook behind a straight-through estimator
                found = tuple(map(torch.zeros_like, places))
            for name, gradient in zip(leaves, found, strict=False):
                # Of a complex parameter, the real and the imaginary part are two entries.
                result[name].append(torch.view_as_real(gradient) if gradient.is_complex() else gradient)
            for name in sorted(attached):
                edges = zip(uses, found[len(leaves) :], strict=True)
                parts = [use.rows[name](b).sum(0) for use, b in edges if name in use.rows]
                tried = self.parameters[name]  # not run for this sample, where a router passes it over
                result[name].append(
                    torch.stack(parts).sum(0).reshape(tried.shape) if parts else torch.zeros_like(tried)
                )
        return result

    def _compare(self, probe: Batch) -> None:
        """Find the parameters whose uses do not explain their gradient."""

        def scalars(output: Any, batch: Batch) -> list[Tensor]:
            return [self.losses(output, batch).sum()]

        recorder = self.recorder()
        uses, (gradients,) = self.uses(probe, scalars, recorder)
        # The samples compared may have no gradient where others do.
        self.slow |= recorder.unknown
        rows: dict[str, Tensor] = {}
        times: dict[str, int] = {}
        for use, b in zip(uses, gradients, strict=True):
            for name, of in use.rows.items():
                times[name] = times.get(name, 0) + 1
                if self.parameters[name].is_complex():
                    continue
                try:
                    mine = of(b).reshape(size(probe), *self.parameters[name].shape)
                except RuntimeError:  # samples are not along dimension 0
                    self.slow.add(name)
                    continue
                rows[name] = rows[name] + mine if name in rows else mine
        for i in range(size(probe)):
            single = self.single(take(probe, slice(i, i + 1)), set(self.parameters), scalars)
            for name, (true,) in single.items():
                if self.parameters[name].is_complex():
                    continue
                mine = rows[name][i] if name in rows else torch.zeros_like(true)
                if (mine - true).norm() > 1e-3 * true.norm() + 1e-12:
                    self.slow.add(name)
        for use in uses:
            for name, linear in use.linear.items():
                if name not in self.slow and times[name] == 1:
                    self.positions[name] = linear.positions
                    if linear.bias is not None and linear.bias not in self.slow and times[linear.bias] == 1:
                        self.biases[name] = linear.bias


def size(batch: Batch) -> int:
    """Return the number of samples of a batch: the length of its first tensor.

    Args:
        batch: The batch.

    Returns:
        Number of samples.

    Raises:
        ConfigError: If the batch holds no tensor.
    """
    for leaf in pytree.tree_leaves(batch.inputs):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ConfigError("A batch for the expansion score must hold tensors whose first dimension is the samples.")


def take(batch: Batch, samples: slice) -> Batch:
    """Return some samples of a batch."""
    return Batch(take_samples(batch.inputs, samples), take_samples(batch.target, samples))


def take_samples(tree: Any, samples: slice) -> Any:
    """Return some samples of every tensor in a structure; tensors without dimensions stay."""
    return pytree.tree_map(lambda x: x[samples] if isinstance(x, Tensor) and x.ndim else x, tree)
