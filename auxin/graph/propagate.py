"""Walk a captured graph, operator by operator, and learn which parameter axes hold the same units.

Each operator has one rule (the files ``rules*.py``). An operator without a rule freezes
the axes of everything it touches, with the reason: nothing is ever assumed to work element by element.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auxin.graph.axes import Axis, MismatchError, atom, freeze, mark_inexact, product, resolve, unify
from auxin.graph.capture import source_code, source_line
from auxin.graph.values import INPUT, OUTPUT, Attribute, DataSize, Literal, LiteralKind, RoleTag, Trace, Value
from auxin.types import Role

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""One rule per operator, by its name without overload, in-place variants under the same name; ``space::name`` where it
is not one of aten's."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a propagation rule for the named operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = function
        return function

    return register


class Propagator:
    """Runs the rules over a graph; rules call its methods to state what they know."""

    def __init__(self, trace: Trace, bound: Mapping[str, str]) -> None:
        self.trace = trace
        self.bound = bound
        self.node: torch.fx.Node
        self.modules = dict(trace.model.named_modules(remove_duplicate=False))
        self.learnt = dict(trace.model.named_parameters())
        self.tensors: dict[str, Tensor] = {**dict(trace.model.named_buffers()), **self.learnt}
        # What stands in for sizes that depend on the data; created axes of which nobody knows what gives their size.
        self.numbers: dict[Any, int] = {}
        self.unsure: list[tuple[Axis, str]] = []
        self.bent: dict[str, str] = {}

    # What rules call

    def unify(self, a: Axis, b: Axis) -> None:
        """State that two axes hold the same units; freeze both if they cannot."""
        try:
            unify(a, b)
        except MismatchError as error:
            for axis in (a, b):
                freeze(axis, f"{self.where()} combines axes that cannot be aligned ({error})")

    def size(self, n: Any) -> int:
        """Return a size as a number; one that depends on the data as a ``DataSize``."""
        if isinstance(n, int):
            return n
        numbers = {symbol: self._number(symbol, n.node.shape_env) for symbol in n.node.expr.free_symbols}
        return DataSize(max(int(n.node.expr.subs(numbers)), 1)) if numbers else int(n)

    def _number(self, symbol: Any, shape_env: Any) -> int:
        """Return what stands in for a symbol: the largest number it may be that no size of the graph is."""
        if symbol not in self.numbers:
            values = pytree.tree_leaves([node.meta.get("val") for node in self.node.graph.nodes])
            taken = {n for value in values if isinstance(value, Tensor) for n in value.shape if isinstance(n, int)}
            taken.update(self.numbers.values())
            bounds = shape_env.var_to_range.get(symbol)
            upper = int(bounds.upper) if bounds is not None and bounds.upper < 2**31 else max(taken, default=1)
            choices = chain(range(upper, 1, -1), count(upper + 1))
            self.numbers[symbol] = next(n for n in choices if n not in taken)
        return self.numbers[symbol]

    def fresh(self, size: Any, why: str | None = None) -> Axis:
        """Return a new axis; frozen for the given reason, if any, or if its size depends on the data."""
        size = self.size(size)
        return atom(int(size), why or ("its size depends on the data" if isinstance(size, DataSize) else None))

    def frozen_like(self, meta: Any, why: str) -> Any:
        """Return values with frozen axes for (nested) example tensors, and numbers for sizes."""
        if isinstance(meta, Tensor):
            return Value(tuple(self.fresh(n, why) for n in meta.shape))
        if isinstance(meta, (tuple, list)):
            return tuple(self.frozen_like(item, why) for item in meta)
        return self.size(meta) if isinstance(meta, torch.SymInt) else meta

    def freeze(self, axis: Axis, why: str) -> None:
        """Forbid growth of an axis because of the current operator."""
        freeze(axis, f"{self.where()} {why}")

    def inexact(self, axis: Axis, why: str) -> None:
        """Record that growth of an axis changes the function because of the current operator."""
        mark_inexact(axis, f"{self.where()} {why}")

    def norm_over(self, value: Value, dim: int, why: str) -> None:
        """Note that a norm is taken over a dimension: new entries of a parameter change it unless they are zero."""
        if not value.pure:
            self.inexact(value.axes[dim], why)
        for name, dims in value.sources:
            self.trace.normed_over.update(dict.fromkeys(((name, d) for d in dims[dim]), f"{self.where()} {why}"))

    def bend(self, value: Value) -> None:
        """Note that a parameter is used through a function that is not linear: zeros may count, halves not add up."""
        self.bent |= {name: self.where() for name, _ in value.sources if name in self.learnt}

    def tag(self, value: Any, dim: int, role: Role, axis: Axis | None = None) -> None:
        """Give a role to a dimension of a parameter (or of a view of one, to its part); activations are passed over."""
        if isinstance(value, Value):
            learnt = any(name in self.learnt for name, _ in value.sources)
            for name, dims in value.sources:
                if learnt and name not in self.learnt:
                    continue  # a factor of a parameter, such as a mask
                if role == "consumer" and name in self.bent:
                    mark_inexact(value.axes[dim], f"{self.bent[name]} changes the weights that read it, not linearly")
                for source in dims[dim]:
                    whole = resolve(value.axes[dim]) == resolve(self.trace.parameters[name].axes[source])
                    part = value.axes[dim] if axis is None and not whole else axis
                    self.trace.roles.append(RoleTag(name, source, role, part))

    def normed(self, value: Value, dim: int) -> None:
        """Note that the forward takes the norm of each row of a parameter: rows of zeros may have no direction."""
        self.trace.normed.update((name, source) for name, dims in value.sources for source in dims[dim])

    def cost(self, *axes: Axis) -> None:
        """Count 2·Π sizes FLOPs for one forward, on the account of the module that calls the current operator."""
        self.trace.costs.append((self.owner()[0], axes))

    def owner(self) -> tuple[str, nn.Module | None]:
        """Return the path of the module whose forward calls the current operator, and the module."""
        stack = self.node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        return path, self.modules.get(path)

    def attribute(self, kind: type[nn.Module] | tuple[type[nn.Module], ...], **axes: Axis | Sequence[Axis]) -> None:
        """Link size attributes of the calling module to axes, if it is of the given type."""
        path, module = self.owner()
        if not isinstance(module, kind):
            return
        for name, linked in axes.items():
            if isinstance(linked, Axis):
                self.trace.attributes.append(Attribute(path, name, None, linked))
            else:
                self.trace.attributes.extend(Attribute(path, name, i, axis) for i, axis in enumerate(linked))

    def literal(self, size: Any, axis: Axis, kind: LiteralKind = "size", firm: bool = False) -> None:
        """Note that the code passes an axis' size as a number, which an attribute of its module may hold."""
        if isinstance(size, int) and size in (-1, axis.size):
            given = Literal(self.owner()[0], axis, size != -1, source_code(self.node), firm, self.where(), kind)
            self.trace.literals.append(given)

    def listed(self, sizes: Sequence[Any], axes: Sequence[Axis]) -> None:
        """Link a tuple or list of the calling module that the code passes as all the sizes of an operator."""
        path, module = self.owner()
        text = source_code(self.node)
        for name, held in vars(module).items() if module is not None else ():
            if isinstance(held, (tuple, list)) and list(held) == list(sizes) and re.search(rf"\bself\.{name}\b", text):
                self.trace.attributes.extend(
                    Attribute(path, name, i, axis) for i, axis in enumerate(axes) if held[i] == axis.size
                )

    def named(self, size: int) -> bool:
        """Return whether the source lines of the current operator name an attribute of its module of this size."""
        module, text = self.owner()[1], source_code(self.node)
        held = vars(module).items() if module is not None else ()
        return any(type(n) is int and n == size and re.search(rf"\b{name}\b", text) for name, n in held)

    def arguments(self) -> str:
        """Return the arguments of the current operator's call as the source has them; empty unless one line has all."""
        line = source_code(self.node).rpartition("\n")[2]
        call = re.search(rf"\b{self.operator_name()}\(", line)
        rest, depth = line[call.end() :] if call else "", 1
        for i, character in enumerate(rest):
            depth += {"(": 1, ")": -1}.get(character, 0)
            if not depth:
                return rest[:i]
        return ""

    def freeze_written(self, size: int, *axes: Axis) -> None:
        """Forbid growth of axes whose size (the first one's) the code passes, if it is written out there."""
        code = self.arguments() or source_code(self.node)
        number = rf"(?<![\w.]){size}(?![\w.])"
        if self.operator_name() == "slice":  # next to the colon
            number = rf"{number} *:|: *-? *{number}"
        if re.search(number, code) and not self.named(size):
            for axis in axes:
                freeze(axis, f"{self.where()} passes a size, {size}, as a number that no attribute of its module holds")

    def where(self) -> str:
        """Name the current operator and its source line."""
        line = source_line(self.node)
        return f"{self.operator_name()}{f' ({line})' if line else ''}"

    def operator_name(self) -> str:
        """Return the current operator's name without namespace, overload and the underscore of in-place variants."""
        target = self.node.target
        name = str(getattr(target, "_opname", None) or getattr(target, "__name__", None) or target)
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name

    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of the current operator's single output."""
        value = self.node.meta["val"]
        return tuple(self.size(n) for n in (value[0] if isinstance(value, (tuple, list)) else value).shape)

    # The walk

    def run(self, graph: torch.fx.Graph, module: torch.fx.GraphModule) -> None:
        """Propagate through a captured forward."""
        env = self.trace.values
        for node in graph.nodes:
            self.node = node
            if node.op == "placeholder":
                env[node] = self._placeholder(node)
            elif node.op == "get_attr":
                target = getattr(module, str(node.target), None)
                env[node] = target if isinstance(target, nn.Module) else self._constant(node)
            elif node.op == "output":
                self._settle()
                self._output(node)
            else:
                args = torch.fx.node.map_arg(node.args, lambda n: env[n])
                kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: env[n])
                env[node] = self._call(node, args, dict(kwargs))

    def _settle(self) -> None:
        """Freeze created axes that no parameter computes: nothing says what their size comes from."""
        produced = [
            self.trace.parameters[tag.parameter].axes[tag.dim] for tag in self.trace.roles if tag.role == "producer"
        ]
        computed = {leaf for axis in produced for leaf in axis.atoms()}
        for axis, why in self.unsure:
            for leaf in axis.atoms():
                if leaf not in computed:
                    leaf.frozen = leaf.frozen or why

    def _placeholder(self, node: torch.fx.Node) -> Any:
        name = self.bound.get(str(node.target))
        if name is None:
            constant = node.meta.get("constant")
            if constant is None:
                return self._constant(node, INPUT)
            path, _, attribute = constant.rpartition(".")
            if not isinstance(getattr(self.modules.get(path), attribute, None), Tensor):
                return self._constant(node)
            return self._constant(node, f"it meets the tensor {constant!r} of fixed size; register that as a buffer")
        if name not in self.trace.parameters:
            tensor = self.tensors[name]
            axes = tuple(atom(int(n)) for n in tensor.shape)
            sources = ((name, tuple((d,) for d in range(tensor.ndim))),)
            self.trace.parameters[name] = Value(axes, sources)
        return self.trace.parameters[name]

    def _constant(self, node: torch.fx.Node, why: str = "a constant tensor of fixed size takes part") -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        return Value(tuple(atom(int(n), why) for n in value.shape))

    def _output(self, node: torch.fx.Node) -> None:
        for value in _values(torch.fx.node.map_arg(node.args, lambda n: self.trace.values[n])):
            for axis in value.axes:
                freeze(axis, OUTPUT)
        self.trace.outputs.update(node.all_input_nodes)

    def _call(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.target is operator.getitem:
            container, index = args
            return container[index] if isinstance(container, (tuple, list)) else self._unknown(args, kwargs)
        name = self.operator_name()
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._unknown(args, kwargs)
        namespace = str(getattr(node.target, "namespace", ""))
        found = RULES.get(name if namespace == "aten" else f"{namespace}::{name}")
        if found is None:
            return self._unknown(args, kwargs)
        try:
            return found(self, *args, **kwargs)
        except Exception:
            # Numbers that stand in for sizes need not divide or add up as the real ones do.
            if not self._depends_on_data(node):
                raise
            return self._unknown(args, kwargs)

    def _depends_on_data(self, node: torch.fx.Node) -> bool:
        """Return whether some size that an operator reads or makes depends on the data."""
        values = pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
        sizes = [n for value in values for n in (value.shape if isinstance(value, Tensor) else [value])]
        return any(isinstance(n, torch.SymInt) for n in sizes)

    def _unknown(self, args: Any, kwargs: Any) -> Any:
        """Freeze everything an operator without a rule touches."""
        why = f"no growth rule for operator {self.where()}"
        for value in _values((args, kwargs)):
            for axis in value.axes:
                freeze(axis, why)
        return self.frozen_like(self.node.meta.get("val"), why)


def _values(tree: Any) -> list[Value]:
    """Return every value in nested arguments."""
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return [value for item in tree for value in _values(item)]
    return []


def grouped(groups: Axis, inner: Axis) -> Axis:
    """Return groups·inner, without the inner factor when it is one."""
    return groups if inner.size == 1 else product(groups, inner)
