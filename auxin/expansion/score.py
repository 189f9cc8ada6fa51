"""The expansion score η = gᵀ F⁻¹ g: how much of the loss's gradient the Fisher metric can follow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auxin.errors import ConfigError, TrainingError
from auxin.expansion.terms import DiagonalTerms, GramTerms, KroneckerTerms, Terms
from auxin.graph.capture import unwrap
from auxin.statistics.batches import Batch, measuring, take_batches
from auxin.statistics.fisher import CURRENT, Fisher, FisherKind, Share
from auxin.statistics.persample import Attachment, size, take
from auxin.types import LossFn

Form = Literal["gram", "blockwise", "diagonal", "kfac"]
FORMS: tuple[Form, ...] = ("gram", "blockwise", "diagonal", "kfac")


@dataclass(frozen=True)
class Settings:
    """How the score is computed.

    Attributes:
        form: ``gram`` is exact; ``blockwise`` exact within each module; ``diagonal`` and ``kfac`` are the usual
            approximations of F.
        fisher: Which Fisher matrix: ``empirical``, ``sampled`` (labels drawn from the model) or ``ggn``.
        target: Where the current model's score shall lie when the damping is chosen, as a share of its largest value.
        memory: Bytes that per-sample gradients may take, or text such as ``256MB``; less memory means more passes.
        chunk: Samples in one forward.
    """

    form: Form = "gram"
    fisher: FisherKind = "empirical"
    target: float = 0.5
    memory: float | str = "64MB"
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"There is no form {self.form!r} of the score; choose one of {', '.join(FORMS)}.")
        if self.fisher not in ("empirical", "sampled", "ggn"):
            raise ConfigError(f"There is no Fisher matrix {self.fisher!r}; choose empirical, sampled or ggn.")
        if not 0 < self.target < 1:
            raise ConfigError(f"The target of the score is {self.target}; give a share between 0 and 1.")
        if self.chunk < 1 or parse_bytes(self.memory) <= 0:
            raise ConfigError("The score needs a chunk of at least 1 sample and some memory, such as 128MB.")


def parse_bytes(text: float | str) -> float:
    """Read an amount of memory.

    Args:
        text: A number of bytes, or text such as ``256MB`` or ``1.5GB``.

    Returns:
        Bytes.

    Raises:
        ConfigError: If the text is no amount.

    Example:
        >>> parse_bytes("256MB")
        256000000.0
    """
    if not isinstance(text, str):
        return float(text)
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*([kKmMgG]?)[bB]?\s*", text)
    if not match:
        raise ConfigError(f"{text!r} is no amount of memory; write for example 256MB.")
    return float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()]


@dataclass(frozen=True)
class Score:
    """An expansion score.

    Attributes:
        value: η.
        damping: λ.
        form: Form of the score.
        fisher: Kind of the Fisher matrix.
        num_samples: Samples it was computed on.
        num_parameters: Parameters that count.
    """

    value: float
    damping: float
    form: str
    fisher: str
    num_samples: int
    num_parameters: int

    def __float__(self) -> float:
        return self.value


def expansion_score(
    model: nn.Module,
    loss_fn: LossFn,
    data: Any,
    *,
    damping: float | None = None,
    num_samples: int = 512,
    seed: int = 0,
    form: Form = "gram",
    fisher: FisherKind = "empirical",
    target: float = 0.5,
    memory: float | str = "64MB",
    chunk: int = 16,
) -> Score:
    """Return η = gᵀ(F + λI)⁻¹g of a model on some samples, with no matrix of size parameters × parameters.

    With J the gradients of the n samples' losses, g = Jᵀ1/n, and for the empirical Fisher matrix F = JᵀJ/n,

        gram        η = (1/n) 1ᵀK(K + nλI)⁻¹1,  K = JJᵀ,  0 ≤ η < 1
        blockwise   the same for each module's parameters, summed
        diagonal    Σ_k g_k² / (mean_i J_ik² + λ)
        kfac        Σ_layers Tr[(S + √λ)⁻¹ W (A + √λ)⁻¹ Wᵀ],  W = E[s aᵀ], A = E[a aᵀ], S = E[s sᵀ]; what is no
                    linear layer or convolution takes the diagonal form

    For rows R of another Fisher matrix, F = RᵀR/n and b = Rg, η = [gᵀg - bᵀ(RRᵀ + nλI)⁻¹b] / λ.

    Args:
        model: The model, only read; norms use their running statistics, dropout is off.
        loss_fn: The loss of (output, target), a mean over samples.
        data: A pair (inputs, targets), or batches of such pairs; a dict is taken as both.
        damping: λ; None chooses it so that η lies at ``target`` of its largest value (other Fisher matrices than the
            empirical one: so that F's effective rank Σ k/(k + nλ) is ``target`` of its rank).
        num_samples: Samples to use, the first ones; fewer if there are no more.
        seed: Of the drawn labels of the ``sampled`` Fisher matrix.
        form: ``gram``, ``blockwise``, ``diagonal`` or ``kfac``.
        fisher: ``empirical``, ``sampled`` or ``ggn``.
        target: Where η shall lie when the damping is chosen.
        memory: Bytes for stored per-sample gradients, such as ``128MB``.
        chunk: Samples in one forward.

    Returns:
        The score.

    Raises:
        ConfigError: If there is no data, or an option has no meaning.
        TrainingError: If the gradients are not finite.

    Reference:
        Mitchell, Mundt, Kersting 2023 (arXiv 2307.04526), section 3; Appolinary et al. 2024 (arXiv 2401.05686).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(20, 3)
        >>> x, y = torch.randn(16, 20), torch.randint(3, (16,))
        >>> score = expansion_score(model, nn.functional.cross_entropy, (x, y))
        >>> round(score.value, 3)
        0.5
    """
    settings = Settings(form, fisher, target, memory, chunk)
    if damping is not None and not 0 < damping < math.inf:
        raise ConfigError(f"The damping is {damping}; give a number above 0, or None to choose one.")
    model = unwrap(model)
    samples, loss = gather(model, data, loss_fn, num_samples)
    terms = measure(model, loss, samples, settings, seed=seed)
    used = terms.choose_damping(target) if damping is None else damping
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Score(terms.value(CURRENT, used), used, form, fisher, size(samples), trainable)


def gather(model: nn.Module, data: Any, loss_fn: LossFn | None, num_samples: int) -> tuple[Batch, LossFn]:
    """Return the first samples of some data as one batch on the model's device.

    Args:
        model: The model.
        data: A pair (inputs, targets), or batches of such pairs; a dict is taken as both.
        loss_fn: The loss.
        num_samples: How many.

    Returns:
        The samples and the loss.

    Raises:
        ConfigError: If there are none, they do not fit together, or no parameter is trainable.
    """
    if num_samples < 1:
        raise ConfigError(f"The score needs at least 1 sample, not num_samples={num_samples}.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("The score needs a gradient, but no parameter of the model is trainable: unfreeze some.")
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[1], Tensor)
    batches: Iterable[Any] | None = [tuple(data)] if pair else [data] if isinstance(data, Mapping) else data
    found: list[Batch] = []
    loss = loss_fn
    have = 0
    # One batch at a time: a loader may be long.
    iterator = iter(batches) if batches is not None else None
    while have < num_samples:
        try:
            (batch,), loss = take_batches(
                model, None if iterator is None else islice(iterator, 1), loss_fn, 1, "natural"
            )
        except ConfigError:
            if found:
                break
            raise
        found.append(batch)
        have += size(batch)
    merged = found[0]
    if len(found) > 1:
        merged = Batch(*(_cat([getattr(batch, part) for batch in found]) for part in ("inputs", "target")))
    assert loss is not None
    if isinstance(merged.target, Tensor) and merged.target.ndim and len(merged.target) != size(merged):
        raise ConfigError(f"The data of the score are {size(merged)} inputs but {len(merged.target)} targets.")
    return take(merged, slice(0, num_samples)), loss


def _cat(trees: list[Any]) -> Any:
    """Join batches along the samples."""
    shapes = [[leaf.shape[1:] for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in trees]
    if any(shape != shapes[0] for shape in shapes):
        raise ConfigError("The batches of the score have samples of different shapes; pad or crop them to one.")
    return pytree.tree_map(lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) and xs[0].ndim else xs[0], *trees)


def measure(
    model: nn.Module,
    loss_fn: LossFn,
    samples: Batch,
    settings: Settings,
    *,
    shares: Mapping[str, list[Share]] | None = None,
    names: frozenset[str] | None = None,
    attached: Mapping[str, Attachment] | None = None,
    seed: int = 0,
) -> Terms:
    """Return what scores follow from.

    Args:
        model: The model, or a grown copy that holds the entries of all proposals.
        loss_fn: The loss.
        samples: The samples.
        settings: How.
        shares: Which entries belong to which proposal.
        names: The parameters that count; the trainable ones if None.
        attached: Proposed layers, by the path of the module they would follow.
        seed: Of drawn labels.

    Returns:
        The terms.

    Raises:
        ConfigError: If a batch norm has no running statistics.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ConfigError(
                f"Samples have no gradients of their own: batch norm {path!r} keeps no running statistics."
            )
    with measuring(model):
        fisher = Fisher(
            model, loss_fn, samples, kind=settings.fisher, shares=shares, names=names, attached=attached,
            memory=parse_bytes(settings.memory), chunk=settings.chunk,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        if settings.form in ("gram", "blockwise"):
            grams = fisher.grams(settings.form == "blockwise")
            _require_finite(gram for of in grams.values() for gram in of.values())
            return GramTerms(grams, fisher.num_samples, settings.form == "blockwise")
        moments = fisher.moments()
        _require_finite(m.gradient * m.square for of in moments.values() for m in of.values())
        if settings.form == "diagonal":
            return DiagonalTerms(moments)
        factors = fisher.factors()
        linear = factors.keys() | {
            fisher.rows_of.biases[name] for name in factors.keys() & fisher.rows_of.biases.keys()
        }
        others = {
            owner: {name: moment for name, moment in of.items() if name not in linear} for owner, of in moments.items()
        }
        return KroneckerTerms(factors, DiagonalTerms(others))


def _require_finite(tensors: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise TrainingError(
            "The gradients on the samples of the expansion score are not finite; lower the learning rate, clip the "
            "gradients, or look for NaN in the data."
        )
