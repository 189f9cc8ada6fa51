"""What belongs together in a net, found by trying: no graph, no operator, only forwards.

Two units of a width group may change places in every parameter axis that holds them, and the net computes the same
function, whatever its nonlinearities. In a proper part of those axes they may not. So a group can be found by
exchanging entries of parameters and looking at the output.

Trying every set of exchanges would take 2^N forwards. Instead, units u and v are first made equal (averaged) on every
axis that might hold them; elsewhere the weights stay generic. Around that point write s± for "add ±a to exchange s",
where a is a random direction that is antisymmetric under s. Then, exactly and not only to first order:

* if s belongs to a group whose other members are all equal there, f(s+) = f(s-), for the exchange of the whole group
  turns one into the other; if not, f(s+) ≠ f(s-) for generic weights;
* if s and t belong to different groups, f(s+, t+) = f(s+, t-); if they differ, s and t must move together.

So groups are the connected components of the second relation among the exchanges that pass the first. Strangers may be
flipped together, so partners are found by halving: of the order of N log N forwards.
Every group found is checked once more at the generic weights it started from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.cases import Inputs, call, double

# Above these counts of exchanges and of tensors, layouts that name every offset take too long to try.
CROWD, LARGE = 400, 32


@dataclass(frozen=True, order=True)
class Exchange:
    """Entries ``first`` and ``second`` of one axis of one tensor change places."""

    tensor: str
    dim: int
    first: int
    second: int

    @property
    def axis(self) -> tuple[str, int]:
        return self.tensor, self.dim


@dataclass(frozen=True)
class Layout:
    """How the units of an index space of size n may lie along an axis.

    An axis of size outer · n · inner is read as that product. ``exact``: only axes of size n. ``inner``: inner is
    fixed, outer whatever remains (heads of one size; a fused qkv). ``outer``: outer is fixed (flatten; query heads that
    share a key head). ``else``: inner is fixed where it divides, else outer is 1 (a shuffle into groups). ``any``:
    every product at once (channel shuffle). ``offset``: also at every offset of a longer axis (concatenation).
    The fewer exchanges a layout allows, the more generic the weights stay.
    """

    kind: str
    value: int = 1

    def inners(self, size: int, n: int) -> list[int]:
        """Return the admissible inner sizes of an axis."""
        times, rest = divmod(size, n)
        if rest or not times:
            return []
        divisors = [d for d in range(1, times + 1) if times % d == 0]
        if self.kind == "exact":
            return [1] if times == 1 else []
        if self.kind in ("inner", "else"):
            fallback = [times] if self.kind == "else" else []
            return [self.value] if self.value in divisors else fallback
        if self.kind == "outer":
            return [times // self.value] if self.value in divisors else []
        return divisors


class BruteForce:
    """A net in float64 at generic weights, and its output under exchanges of parameter entries."""

    def __init__(self, model: nn.Module, inputs: Inputs, tolerance: float = 1e-10) -> None:
        self.tolerance = tolerance
        self.model = model.double().eval()
        self.inputs = double(inputs)
        self.tensors: dict[str, Tensor] = {}
        self.canonical: dict[str, str] = {}
        seen: dict[int, str] = {}
        pairs = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in pairs:
            if tensor.is_floating_point() and tensor.dim() > 0:
                self.canonical[name] = seen.setdefault(id(tensor), name)
                self.tensors.setdefault(self.canonical[name], tensor.data)
        self.base = self.output()
        self.scale = max(1.0, float(self.base.abs().max()))

    def output(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([leaf.flatten() for leaf in call(self.model, self.inputs)])

    def equal(self, a: Tensor, b: Tensor) -> bool:
        return float((a - b).abs().max()) <= self.tolerance * self.scale

    @contextmanager
    def changed(self, change: Callable[[], None]) -> Iterator[None]:
        """Apply a change to the tensors, and put them back afterwards."""
        before = {name: tensor.clone() for name, tensor in self.tensors.items()}
        try:
            change()
            yield
        finally:
            for name, tensor in self.tensors.items():
                tensor.copy_(before[name])

    def exchange(self, exchanges: frozenset[Exchange] | set[Exchange]) -> None:
        """Exchange entries in place (of disjoint pairs, so in any order)."""
        for e in exchanges:
            view = self.tensors[e.tensor].movedim(e.dim, 0)
            view[[e.first, e.second]] = view[[e.second, e.first]]

    def is_symmetry(self, exchanges: frozenset[Exchange] | set[Exchange]) -> bool:
        """Whether the exchanges, all together, leave the output as it is."""
        self.exchange(exchanges)
        moved = self.output()
        self.exchange(exchanges)
        return self.equal(moved, self.base)

    def is_inert(self, e: Exchange) -> bool:
        """Whether the output ignores the entries (a bias before an instance norm, the bias of an attention's keys)."""
        return self.is_symmetry({e})

    # ------------------------------------------------------------------------------------------------- discovery

    def layouts(self, n: int) -> list[Layout]:
        """Return the ways to look for ``n`` units that this net's sizes allow; see ``Layout``."""
        sizes = {size for tensor in self.tensors.values() for size in tensor.shape}
        times = sorted({size // n for size in sizes if size % n == 0})
        inner = sorted({d for t in times for d in range(1, t + 1) if t % d == 0})
        found = [Layout("exact"), *(Layout(kind, d) for d in inner for kind in ("inner", "else")), Layout("outer", 1)]
        if len(self.tensors) > LARGE:
            return [x for x in found if x.kind != "else" and len(self.candidates(n, x)) <= CROWD]
        crowded = [Layout("any"), Layout("offset")]
        return found + [layout for layout in crowded if len(self.candidates(n, layout)) <= CROWD]

    def searches(self, n: int) -> list[list[Exchange]]:
        """Return the sets of candidate exchanges to search, one for each layout that names a set of its own."""
        different: list[list[Exchange]] = []
        for layout in self.layouts(n):
            exchanges = self.candidates(n, layout)
            if exchanges and exchanges not in different:
                different.append(exchanges)
        return different

    def candidates(self, n: int, layout: Layout) -> list[Exchange]:
        """Every exchange of units 0 and n - 1 that an axis may hold under a layout, by its size alone."""
        u, v = 0, n - 1
        found = []
        for name, tensor in self.tensors.items():
            for dim, size in enumerate(tensor.shape):
                pairs: set[tuple[int, int]] = set()
                for inner in layout.inners(size, n):
                    for outer in range(0, size, n * inner):
                        pairs.update((outer + u * inner + b, outer + v * inner + b) for b in range(inner))
                if layout.kind == "offset":
                    pairs.update((o + u, o + v) for o in range(size - n + 1))
                found += [Exchange(name, dim, i, j) for i, j in sorted(pairs)]
        return found

    def orbits(self, exchanges: list[Exchange]) -> dict[tuple[str, int], Tensor]:
        """For each axis, the matrix that averages the entries which the exchanges can move onto one another."""
        labels: dict[tuple[str, int], list[int]] = {}
        for e in exchanges:
            label = labels.setdefault(e.axis, list(range(self.tensors[e.tensor].shape[e.dim])))
            old, new = label[e.second], label[e.first]
            labels[e.axis] = [new if k == old else k for k in label]
        averages = {}
        for axis, label in labels.items():
            same = (torch.tensor(label)[:, None] == torch.tensor(label)[None]).double()
            averages[axis] = same / same.sum(1, keepdim=True)
        return averages

    def directions(self, exchanges: list[Exchange], averages: dict[tuple[str, int], Tensor], seed: int) -> list[Tensor]:
        """A random direction for each exchange: antisymmetric under it, symmetric on the tensor's other axes."""
        generator = torch.Generator().manual_seed(seed)
        directions = []
        for e in exchanges:
            tensor = self.tensors[e.tensor]
            step = torch.zeros_like(tensor)
            line = torch.randn(tensor.movedim(e.dim, 0)[0].shape, generator=generator, dtype=tensor.dtype)
            view = step.movedim(e.dim, 0)
            view[e.first], view[e.second] = line, -line
            for dim in range(tensor.dim()):
                if dim != e.dim and (e.tensor, dim) in averages:
                    step = _average(step, dim, averages[e.tensor, dim])
            size = float(tensor.abs().mean()) or 1.0
            directions.append(step * (0.3 * size / (float(step.abs().max()) or 1.0)))
        return directions

    def discover(self, candidates: list[Exchange], seed: int = 0) -> list[frozenset[Exchange]]:
        """Find the minimal sets of candidate exchanges that leave the function as it is."""
        exchanges = [e for e in candidates if not self.is_inert(e)]
        averages = self.orbits(exchanges)
        directions = self.directions(exchanges, averages, seed)

        def symmetrise() -> None:
            for (name, dim), matrix in averages.items():
                self.tensors[name].copy_(_average(self.tensors[name], dim, matrix))

        def at(sign: int, indices: Collection[int], fixed: int | None = None) -> Tensor:
            moved = [(k, sign) for k in indices] + ([] if fixed is None else [(fixed, 1)])
            for k, factor in moved:
                self.tensors[exchanges[k].tensor].add_(directions[k], alpha=factor)
            value = self.output()
            for k, factor in moved:
                self.tensors[exchanges[k].tensor].sub_(directions[k], alpha=factor)
            return value

        def coupled(k: int, others: list[int]) -> set[int]:
            """The others that must move with k, by halving: flipping strangers together changes nothing."""
            if not others or self.equal(at(1, others, k), at(-1, others, k)):
                return set()
            if len(others) == 1:
                return set(others)
            middle = len(others) // 2
            return coupled(k, others[:middle]) | coupled(k, others[middle:])

        with self.changed(symmetrise):
            unvisited = {k for k in range(len(exchanges)) if self.equal(at(1, [k]), at(-1, [k]))}
            components = []
            while unvisited:
                component = frontier = {unvisited.pop()}
                while frontier:
                    k = min(frontier)
                    joined = coupled(k, sorted(unvisited))
                    unvisited -= joined
                    component = component | joined
                    frontier = (frontier - {k}) | joined
                components.append(frozenset(exchanges[k] for k in component))
        return [c for c in components if _disjoint(c) and self.is_symmetry(c)]


def _average(tensor: Tensor, dim: int, matrix: Tensor) -> Tensor:
    return torch.tensordot(matrix, tensor, dims=([1], [dim])).movedim(0, dim)


def _disjoint(component: frozenset[Exchange]) -> bool:
    entries = [(e.axis, k) for e in component for k in (e.first, e.second)]
    return len(entries) == len(set(entries))
