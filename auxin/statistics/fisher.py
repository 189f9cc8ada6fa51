"""Gram matrices, second moments and Kronecker factors of per-sample gradients, for the Fisher matrix of a model.

With J the gradients of n samples, g = Jᵀ1/n and the Fisher matrix F = RᵀR/n of rows R (R = J if it is empirical), all
of gᵀ(F + λI)⁻¹g follows from inner products of rows, summed over parameters:

    K = Σ_parameters J_p J_pᵀ        (rows × rows), never anything of size parameters × parameters.

Each parameter adds its part on its own, and so do the entries of a parameter that belong to different proposals; one
pass serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auxin.errors import ConfigError
from auxin.statistics.batches import Batch
from auxin.statistics.persample import Attachment, PerSample, Use, size, take
from auxin.types import LossFn

FisherKind = Literal["empirical", "sampled", "ggn"]
CURRENT = ""
"""Owner of the entries that the model has now."""
MOST_POSITIONS = 16
"""Above so many positions per sample, products over pairs of positions are never the cheaper way."""
COLUMNS = 2**11
"""Entries of each row that are in float64 at a time."""


@dataclass(frozen=True)
class Share:
    """Some entries of a parameter and whose they are.

    Attributes:
        owner: Name of a proposal, or ``CURRENT``.
        dim: Dimension along which the entries are chosen; None for all of them.
        index: Their indices there.
    """

    owner: str
    dim: int | None = None
    index: Tensor | None = None

    def of(self, rows: Tensor) -> Tensor:
        """Return the share's entries of rows (sets, samples, *parameter), flat: (sets, samples, entries)."""
        if self.dim is not None and self.index is not None:
            rows = rows.index_select(self.dim + 2, self.index.to(rows.device))
        return rows.reshape(*rows.shape[:2], -1)  # a scalar parameter's rows have no third dimension


ALL = (Share(CURRENT),)


@dataclass
class Moments:
    """Of one share of one parameter: gradient of the mean loss, and mean square of the Fisher rows, per entry."""

    gradient: Tensor
    square: Tensor


@dataclass
class Factors:
    """Kronecker factors of one linear map, its bias as a last input of ones.

    Attributes:
        w: E[Σ_t s_t a_tᵀ], the gradient of the mean loss, shape (outputs, inputs).
        a: E[Σ_t a_t a_tᵀ], shape (inputs, inputs).
        s: E[Σ_t s_t s_tᵀ] / positions over the Fisher rows, shape (outputs, outputs).
        shares: For each owner, its columns among the inputs.
    """

    w: Tensor
    a: Tensor
    s: Tensor
    shares: dict[str, Tensor]


class Fisher:
    """What the Fisher matrix of a model is made of, on fixed samples, in bounded memory.

    Args:
        model: The model, already in ``measuring``; only read.
        loss_fn: The loss of (output, target), a mean over samples.
        samples: All samples as one batch.
        kind: ``empirical`` rows are the gradients of the samples' own losses; ``sampled`` ones those of
            -log p(y) with one y drawn from the model's prediction; ``ggn`` ones √p(y) ∇(-log p(y)) for every class y,
            whose F is the generalised Gauss-Newton matrix of the cross-entropy. The last two need logits (N, classes).
        shares: For each parameter with entries of proposals, who owns which; others are ``CURRENT``'s.
        names: The parameters that count; the trainable ones if None.
        attached: Layers tried after modules, by the module's path.
        memory: Bytes that stored rows may take; more of them means more passes over the samples.
        chunk: Samples per forward.
        generator: Draws the labels of ``sampled``.

    Attributes:
        num_samples: n.
        num_sets: Sets of n rows: 1 for ``empirical``, 2 for ``sampled``, 1 + classes for ``ggn``. The first is J.

    Raises:
        ConfigError: If the outputs are not logits and the kind needs them.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, samples: Batch, *, kind: FisherKind = "empirical",
        shares: Mapping[str, Sequence[Share]] | None = None, names: frozenset[str] | None = None,
        attached: Mapping[str, Attachment] | None = None,
        memory: float = 256e6, chunk: int = 32, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.kind, self.memory = samples, kind, memory
        self.rows_of = PerSample(model, loss_fn, samples, names, attached)
        self.shares = dict(shares or {})
        self.num_samples = size(samples)
        largest = max((p.numel() * p.element_size() for p in self.rows_of.parameters.values()), default=1)
        self.labels: Tensor | None = None
        self.num_sets, self.chunk = 1, chunk
        if kind != "empirical":
            self._predict(generator or torch.Generator().manual_seed(0))
        self.chunk = max(1, min(chunk, int(memory / (self.num_sets * largest))))

    @torch.no_grad()
    def _predict(self, generator: torch.Generator) -> None:
        drawn = []
        for _, batch in self._chunks():
            logits = self.rows_of.forward(batch, self.rows_of.parameters)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise ConfigError(f"The {self.kind} Fisher matrix needs a model that returns logits (N, classes).")
            uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(logits.device)
            steps = logits.double().softmax(1).cumsum(1)
            drawn.append((steps < uniform).sum(1).clamp(max=logits.shape[1] - 1))
            self.num_sets = 2 if self.kind == "sampled" else 1 + logits.shape[1]
        self.labels = torch.cat(drawn)

    def _chunks(self) -> Iterator[tuple[slice, Batch]]:
        for start in range(0, self.num_samples, self.chunk):
            where = slice(start, min(start + self.chunk, self.num_samples))
            yield where, take(self.samples, where)

    def _passes(self) -> Iterator[tuple[slice, Batch, Any]]:
        """Yield each chunk with the sums that its gradients come from."""
        for where, batch in self._chunks():
            labels = None if self.labels is None else self.labels[where]

            def scalars(output: Any, part: Batch, labels: Tensor | None = labels) -> list[Tensor]:
                own = self.rows_of.losses(output, part).sum()
                if labels is None:
                    return [own]
                if self.kind == "sampled":
                    return [own, F.cross_entropy(output, labels, reduction="sum")]
                logs = output.log_softmax(1)
                return [own, *(-(logs.detach() / 2).exp() * logs).sum(0)]

            yield where, batch, scalars

    def _slow(self, batch: Batch, where: slice, names: set[str], scalars: Any) -> dict[str, Tensor]:
        """Return the rows of parameters that need single-sample passes; each sample keeps its own drawn label."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        if not names:
            return {}
        for i in range(size(batch)):
            labels = None if self.labels is None else self.labels[where][i : i + 1]
            one = take(batch, slice(i, i + 1))
            wanted = (lambda o, b, labels=labels: scalars(o, b, labels)) if labels is not None else scalars
            for name, rows in self.rows_of.single(one, names, wanted).items():
                found[name].append(torch.stack(rows))
        return {name: torch.stack(rows, dim=1) for name, rows in found.items()}

    def rows(
        self,
        where: slice,
        batch: Batch,
        scalars: Any,
        names: set[str],
        also: set[str] = frozenset(),  # type: ignore[assignment]
    ) -> tuple[dict[str, Tensor], list[Use], list[list[Tensor]]]:
        """Return the rows of some parameters for one chunk, (sets, samples, *parameter), and the uses.

        The backward pass goes no further than the first use of these parameters and those of ``also``.
        """
        slow = names & self.rows_of.slow
        found = self._slow(batch, where, slow, scalars)
        uses, gradients = self.rows_of.uses(batch, scalars, self.rows_of.recorder((names | also) - slow))
        for k, use in enumerate(uses):
            for name, of in use.rows.items():
                if name in names - slow:
                    mine = torch.stack([of(b[k]) for b in gradients])
                    found[name] = found[name] + mine if name in found else mine
        return found, uses, gradients

    def grams(self, blockwise: bool = False) -> dict[str, dict[str, Tensor]]:
        """Return the Gram matrix of all rows for each owner and, if asked, module.

        Args:
            blockwise: Whether to keep modules apart; without, what each owner has is one matrix under ``""``.

        Returns:
            owner → module path → matrix (sets · n, sets · n), in float64 for the current model and in the model's
            precision for proposals, of which there are many, where the Fisher matrix is the empirical one.
        """
        result: dict[str, dict[str, Tensor]] = {CURRENT: {}}
        for names, paired in self._plan():
            stored = _Stored(self, names, paired)
            for where, batch, scalars in self._passes():
                stored.add(where, batch, scalars)
            for name, owner, gram in stored.grams():
                blocks = result.setdefault(owner, {})
                block = name.rpartition(".")[0] if blockwise else ""
                # Empirical ones bear rounding; with rows beside the gradients a score is a difference over λ.
                if owner != CURRENT and not blockwise and self.num_sets == 1:
                    gram = gram.to(self.rows_of.parameters[name].dtype.to_real())
                blocks[block] = blocks[block] + gram if block in blocks else gram
        return result

    def _plan(self) -> Iterator[tuple[set[str], set[str]]]:
        """Yield the parameters of each pass: those stored as rows, and those stored as inputs and gradients there."""
        rows, paired, used = set[str](), set[str](), 0.0
        for name, parameter in self.rows_of.parameters.items():
            cheap = self._pairs_are_cheaper(name)
            t, width = self.rows_of.positions.get(name, 1), parameter.shape
            entries = parameter.numel() * self.num_sets
            if cheap:
                entries = t * (parameter.numel() // width[0] + self.num_sets * width[0])
            need = float(entries * self.num_samples * parameter.element_size())
            if used and used + need > self.memory:
                yield rows, paired
                rows, paired, used = set(), set(), 0.0
            (paired if cheap else rows).add(name)
            used += need
        if used:
            yield rows, paired

    def _pairs_are_cheaper(self, name: str) -> bool:
        """Return whether (a·a)(b·b) over pairs of positions costs less than the sample's gradients themselves."""
        t = self.rows_of.positions.get(name)
        if t is None or t > MOST_POSITIONS or any(share.dim not in (None, 1) for share in self.shares.get(name, ALL)):
            return False
        parameter = self.rows_of.parameters[name]
        outputs, inputs = parameter.shape[0], parameter.numel() // parameter.shape[0]
        return t * t * (inputs + outputs) < inputs * outputs

    def moments(self) -> dict[str, dict[str, Moments]]:
        """Return first and second moments for each owner and parameter, for the diagonal form."""
        sums: dict[tuple[str, str], Moments] = {}
        for where, batch, scalars in self._passes():
            for name, rows in self.rows(where, batch, scalars, set(self.rows_of.parameters))[0].items():
                for share in self.shares.get(name, ALL):
                    part = share.of(rows.double())
                    fisher = part[1:] if self.num_sets > 1 else part
                    add = Moments(part[0].sum(0), fisher.square().sum((0, 1)))
                    old = sums.get((share.owner, name))
                    sums[share.owner, name] = (
                        add if old is None else Moments(old.gradient + add.gradient, old.square + add.square)
                    )
        result: dict[str, dict[str, Moments]] = {}
        for (owner, name), total in sums.items():
            result.setdefault(owner, {})[name] = Moments(
                total.gradient / self.num_samples, total.square / self.num_samples
            )
        return result

    def factors(self) -> dict[str, Factors]:
        """Return the Kronecker factors of every linear map; other parameters have none."""
        result: dict[str, Factors] = {}
        n, positions = self.num_samples, self.rows_of.positions
        for _, batch, scalars in self._passes():
            uses, gradients = self.rows_of.uses(batch, scalars)
            for k, use in enumerate(uses):
                for name, linear in use.linear.items():
                    if name not in positions:
                        continue
                    a = linear.a().double()
                    if name in self.rows_of.biases:
                        a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], dim=2)
                    b = [linear.b(bs[k]).double() for bs in gradients]
                    part = Factors(
                        torch.einsum("mto,mti->oi", b[0], a) / n,
                        torch.einsum("mti,mtj->ij", a, a) / n,
                        sum(torch.einsum("mto,mtp->op", s, s) for s in (b[1:] or b)) / (n * positions[name]),  # type: ignore[arg-type]
                        self._columns(name, a.shape[2]),
                    )
                    old = result.get(name)
                    result[name] = (
                        part if old is None else Factors(old.w + part.w, old.a + part.a, old.s + part.s, old.shares)
                    )
        return result

    def _columns(self, name: str, inputs: int) -> dict[str, Tensor]:
        """Return the columns that each owner has among a layer's inputs times kernel, the bias' one last."""
        parameter = self.rows_of.parameters[name]
        kernel = parameter[0, 0].numel()
        columns: dict[str, Tensor] = {}
        for share in self.shares.get(name, ALL):
            index = torch.arange(parameter.shape[1]) if share.index is None else share.index
            columns[share.owner] = (index[:, None] * kernel + torch.arange(kernel)).flatten()
        bias = self.rows_of.biases.get(name)
        if bias is not None:
            owner = self.shares.get(bias, ALL)[0].owner
            columns[owner] = torch.cat([columns.get(owner, torch.arange(0)), torch.tensor([inputs - 1])])
        return columns


class _Stored:
    """What one pass keeps of all samples, and the Gram matrices that follow."""

    def __init__(self, fisher: Fisher, names: set[str], paired: set[str]) -> None:
        self.fisher, self.names, self.paired = fisher, names, paired
        self.rows: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def add(self, where: slice, batch: Batch, scalars: Any) -> None:
        """Keep one chunk: (sets, samples, *parameter) rows, and factors of shape (samples, positions, ...)."""
        found, uses, gradients = self.fisher.rows(where, batch, scalars, self.names, self.paired)
        for k, use in enumerate(uses):
            for name, linear in use.linear.items():
                if name in self.paired:
                    self._keep(self.inputs, name, where, linear.a()[None])
                    self._keep(self.outputs, name, where, torch.stack([linear.b(bs[k]) for bs in gradients]))
        for name, rows in found.items():
            self._keep(self.rows, name, where, rows)

    def _keep(self, kept: dict[str, Tensor], name: str, where: slice, part: Tensor) -> None:
        # One allocation for all samples: many small ones, freed out of order, leave memory in pieces.
        if name not in kept:
            kept[name] = part.new_zeros(part.shape[0], self.fisher.num_samples, *part.shape[2:])
        kept[name][:, where] = part

    def grams(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (parameter, owner, Gram matrix in float64)."""
        for name in list(self.rows):
            whole = self.rows.pop(name)
            for share in self.fisher.shares.get(name, ALL):
                yield name, share.owner, _gram(share.of(whole).flatten(0, 1))
        for name in list(self.inputs):
            a, b = self.inputs.pop(name)[0], self.outputs.pop(name)
            kernel = self.fisher.rows_of.parameters[name][0, 0].numel()
            by_channel = a.view(*a.shape[:2], -1, kernel)
            for share in self.fisher.shares.get(name, ALL):
                mine = by_channel if share.index is None else by_channel.index_select(2, share.index.to(a.device))
                yield name, share.owner, _paired_gram(mine.flatten(2), b)


def _gram(rows: Tensor) -> Tensor:
    """Return rows · rowsᵀ in float64: rounded products would make small eigenvalues negative, and η with them."""
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(COLUMNS, dim=1):
        exact = part.double()
        gram += exact @ exact.T
    return gram


def _paired_gram(a: Tensor, b: Tensor) -> Tensor:
    """Return Σ_tt' (a_it · a_jt')(b_it · b_jt') for all pairs of rows, some samples at a time.

    Args:
        a: Inputs, shape (n, positions, inputs), the same for every set.
        b: Gradients at the outputs, shape (sets, n, positions, outputs).

    Returns:
        float64 matrix (sets · n, sets · n).
    """
    sets, n, t, _ = b.shape
    gram = torch.empty(sets, n, sets, n, dtype=torch.float64, device=a.device)
    a, b = a.double(), b.double()
    flat_a, step = a.flatten(0, 1), max(1, 128 // t)
    for start in range(0, n, step):
        some = slice(start, min(start + step, n))
        aa = a[some].flatten(0, 1) @ flat_a.T
        for k in range(sets):
            for m in range(sets):
                product = aa * (b[k, some].flatten(0, 1) @ b[m].flatten(0, 1).T)
                gram[k, some, m] = product.view(-1, t, n, t).sum((1, 3))
    return gram.view(sets * n, sets * n)
