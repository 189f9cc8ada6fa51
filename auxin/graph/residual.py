"""Modules that add something to their own input, and which of their parameters make that something zero."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch

from auxin.graph.naming import CONTAINERS, GROWN, LINEAR, NORMS, operator_name, stack
from auxin.graph.numbers import can_number_copies, layer_list
from auxin.graph.values import Trace, Value

MAPS = {*LINEAR, "addmm"}
PRODUCTS = {"mul", "matmul", "mm", "bmm", "grouped_mm", "_grouped_mm", "grouped_mm_fallback"}
NORMS_WITH_SCALE = {
    *NORMS, "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm", "rms_norm",
}  # fmt: skip
VIEWS = {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "flatten", "unflatten", "squeeze", "unsqueeze",
    "contiguous", "clone", "alias", "expand", "slice", "roll", "movedim", "numpy_T",
}  # fmt: skip
CASTS = {"to", "_to_copy", "type_as"}
KEEP_ZERO = {
    *VIEWS, *CASTS, "dropout", "native_dropout", "feature_dropout", "relu", "relu6", "leaky_relu", "prelu", "elu",
    "selu", "celu", "gelu", "silu", "mish", "tanh", "hardswish", "softsign", "div", "neg", "sum", "index",
}  # fmt: skip
"""Operators that make zeros of zeros, whatever their other arguments are."""
UNCHANGED = {*CASTS, "contiguous", "clone", "alias", "view", "reshape", "_unsafe_view", "flatten", "unflatten"}
"""Operators that leave the numbers and their order alone, unless they change the type."""


Neutral = dict[str, float]
"""Names of parameters, and values with which something is zero."""


@dataclass(frozen=True)
class Residual:
    """A module with y = x + f(x), or that followed by an activation which leaves its own outputs alone.

    Attributes:
        neutral: Parameters within the module and their values with which f is zero: zero, or -1 where 1 is added.
        output: The node of y.
        entering: How many tensors that depend on the model's inputs enter the module, x among them.
    """

    neutral: tuple[tuple[str, float], ...]
    output: torch.fx.Node
    entering: int


def find_residuals(
    trace: Trace, calls: Mapping[str, Mapping[str, list[torch.fx.Node]]], bare: Set[str], first: Set[str]
) -> dict[str, Residual]:
    """Return the modules that are called once with a tensor x and return x + f(x), or a tuple with it, by path.

    f ends in parameters of the module: in a norm or linear map, a scale of each channel, or a product with one. Several
    such sums may follow each other, as attention and feed-forward do in a transformer's layer that normalises first. A
    module made of a list of such modules, a whole stage, is left out for them. So are modules with parameters that only
    another output of theirs depends on (a skip connection to the end), and layers that know their number in the model
    (``layer_idx``) where a copy cannot get one of its own: it would share the number's entry in a cache.

    Args:
        trace: What propagation learnt.
        calls: For each module path its calls, and the nodes of each.
        bare: Paths of modules that return one tensor.
        first: Paths of modules that return a tuple with a tensor in front.

    Returns:
        For each path what was found.
    """
    frozen_model = not any(p.requires_grad for p in trace.model.parameters())
    trainable = {name for name, p in trace.model.named_parameters() if p.requires_grad or frozen_model}
    buffers = {name for name, _ in trace.model.named_buffers()}
    found: dict[str, Residual] = {}
    for path in sorted(bare | first):
        nodes = calls.get(path, {})
        if not path or len(nodes) != 1 or f".{GROWN}." in f".{path}.":
            continue
        module = trace.model.get_submodule(path)
        if isinstance(module, CONTAINERS) or not can_number_copies(trace.model, path):
            continue
        grown = f"{path}.{GROWN}."
        own = [node for node in next(iter(nodes.values())) if not any(one.startswith(grown) for one in stack(node))]
        one = _Search(trace, path, own, trainable, buffers).run(single=path in bare)
        if one is not None:
            found[path] = one
    lists = [path for path, module in trace.model.named_modules() if isinstance(module, CONTAINERS)]
    made_of = {
        path for path in found for inner in found for held in lists
        if inner.startswith(f"{held}.") and held.startswith(f"{path}.") and not _counted(trace.model, path)
    }  # fmt: skip
    # Two tensors enter: what is added may be another argument than the first.
    kept = {path: one for path, one in found.items() if path not in made_of}
    doubtful = {path for path, one in kept.items() if one.entering > 1 and any(path.startswith(f"{p}.") for p in kept)}
    return {path: one for path, one in kept.items() if path not in doubtful}


def _counted(model: torch.nn.Module, path: str) -> bool:
    layers = layer_list(model, path)
    return layers is not None and bool(layers.counts)


class _Search:
    """Looks from a module's output back to its input."""

    def __init__(
        self, trace: Trace, path: str, nodes: list[torch.fx.Node], trainable: set[str], buffers: set[str]
    ) -> None:
        self.trace, self.path, self.nodes, self.inside = trace, path, nodes, set(nodes)
        self.trainable, self.buffers = trainable, buffers
        self.clamps: set[str] = set()

    def run(self, single: bool) -> Residual | None:
        leaving = [node for node in self.nodes if any(user not in self.inside for user in node.users)]
        if single and len(leaving) != 1:
            return None
        # Of a tuple's tensors (attention weights, a bias that the next layer reuses) one may be such a sum.
        found = [one for node in leaving if (one := self._from(node)) is not None]
        return found[0] if len(found) == 1 else None

    def _from(self, output: torch.fx.Node) -> Residual | None:
        # Inner activations must leave the output's values alone.
        self.clamps = {"relu": {"relu"}, "relu6": {"relu", "relu6"}}.get(operator_name(output), set())
        origin, neutral = self._identity(output)
        if origin is None or not neutral or origin.meta["val"].shape != output.meta["val"].shape:
            return None
        if not self._all_reach(output):
            return None
        entering = {one for node in self.nodes for one in node.all_input_nodes if self._enters(one)}
        own = tuple((name.removeprefix(f"{self.path}."), at) for name, at in neutral.items())
        return Residual(own, output, len(entering))

    def _all_reach(self, output: torch.fx.Node) -> bool:
        """Return whether each trained parameter of the module has a part in an output: a copy's others lead nowhere."""
        reach, waiting = {output}, [output]
        while waiting:
            new = [one for one in waiting.pop().all_input_nodes if one not in reach and one in self.inside]
            reach.update(new)
            waiting += new
        used, reached = (
            {name for node in nodes for one in node.all_input_nodes if (name := self._name(one)) in self.trainable}
            for nodes in (self.inside, reach)
        )
        return not any(name.startswith(f"{self.path}.") for name in used - reached)

    def _identity(self, node: torch.fx.Node) -> tuple[torch.fx.Node | None, Neutral]:
        """Return the node outside that this one equals once some parameters are neutral, and these; or None."""
        if node not in self.inside:
            return (node if self._enters(node) else None), {}
        name = operator_name(node)
        if name in UNCHANGED or name in self.clamps:
            before: torch.fx.Node = node.args[0]  # type: ignore[assignment]
            return self._identity(before) if before.meta["val"].dtype == node.meta["val"].dtype else (None, {})
        if name == "add" and not node.kwargs and all(isinstance(arg, torch.fx.Node) for arg in node.args):
            first, second = node.args
            for skip, branch in ((first, second), (second, first)):
                origin, neutral = self._identity(skip)  # type: ignore[arg-type]
                ends = self._zero(branch) if origin is not None else None
                if ends is not None:
                    return origin, neutral | ends
        return None, {}

    def _enters(self, node: torch.fx.Node) -> bool:
        """Return whether a node is a tensor from outside that depends on the model's inputs."""
        value, tensor = self.trace.values.get(node), isinstance(node.meta.get("val"), torch.Tensor)
        return node not in self.inside and isinstance(value, Value) and not value.pure and tensor

    def _zero(self, node: object) -> Neutral | None:
        """Return parameters of the module and their values that make a node zero; None if there are none."""
        if not isinstance(node, torch.fx.Node) or node not in self.inside:
            return None
        name, tensors = operator_name(node), [arg for arg in node.args if isinstance(arg, torch.fx.Node)]
        if name in MAPS | NORMS_WITH_SCALE:
            x = node.args[1] if name == "addmm" else node.args[0]
            learnt = [self._parameter(arg) for arg in tensors if arg is not x and self._name(arg) not in self.buffers]
            return {key: at for one in learnt for key, at in one.items()} if learnt and all(learnt) else None
        if name in PRODUCTS:
            scales = [scale for arg in tensors if (scale := self._parameter(arg))]
            if scales:
                return scales[0]
            return next((found for arg in tensors if (found := self._zero(arg)) is not None), None)
        if name == "add" and len(tensors) > 1:
            first, second = self._zero(tensors[0]), self._zero(tensors[1])
            return None if first is None or second is None else first | second
        return self._zero(node.args[0]) if name in KEEP_ZERO else None

    def _parameter(self, node: torch.fx.Node, shift: float = 0.0) -> Neutral:
        """Return the trained parameter of the module that a node is, a view or shifted, and where the node is zero."""
        name, args = operator_name(node), node.args
        if name in VIEWS | CASTS and isinstance(args[0], torch.fx.Node):
            return self._parameter(args[0], shift)
        if name == "add" and isinstance(args[0], torch.fx.Node) and isinstance(args[1], (int, float)):
            return self._parameter(args[0], shift + args[1])  # x * (1 + scale), as in Gemma's norms
        parameter = self._name(node)
        own = parameter in self.trainable and parameter.startswith(f"{self.path}.")
        return {parameter: 0.0 - shift} if own else {}

    def _name(self, node: torch.fx.Node) -> str:
        value = self.trace.values.get(node)
        return value.sources[0][0] if node.op == "placeholder" and isinstance(value, Value) and value.pure else ""
