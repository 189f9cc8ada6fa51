"""Propagation rules: recurrent layers and their cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from auxin.graph.axes import Axis, product
from auxin.graph.propagate import Propagator, grouped, rule
from auxin.graph.rules_linear import add_bias, batch_letters, contract, linear
from auxin.graph.values import Value

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Blocks of rows in the weights of a recurrent layer, one for each gate."""


@rule(*GATES)
def recurrent(
    p: Propagator, x: Value, hx: Any, weights: Any, biased: Any, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool = False,
) -> Any:  # fmt: skip
    """A recurrent layer: W_ih x + W_hh h + b for (gates·hidden) rows, with one hidden size for all its layers."""
    if not isinstance(weights, (list, tuple)):  # packed sequences
        return p._unknown((x, hx, weights, biased), {})
    name = p.operator_name()
    states = list(hx) if name == "lstm" else [hx]
    time, batch = (x.axes[1], x.axes[0]) if batch_first else (x.axes[0], x.axes[1])
    p.freeze(time, "runs along it")
    for state in states:
        p.freeze(state.axes[0], "has one state for each layer")
        p.unify(state.axes[1], batch)
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    projected = len(states) == 2 and each % 2 == 1
    hidden, state = states[-1].axes[-1], states[0].axes[-1]
    if not projected:
        p.unify(hidden, state)
    y = x
    for layer in range(layers):
        for direction in range(directions):
            start = (layer * directions + direction) * each
            inner = Value((*x.axes[:-1], state))
            _gates(p, GATES[name], y, inner, hidden, weights[start : start + (4 if biased else 2)])
            if projected:
                p.unify(state, linear(p, Value((*x.axes[:-1], hidden)), weights[start + each - 1]).axes[-1])
        out = product(p.fresh(2, "the two directions"), state) if bidirectional else state
        y = Value((*x.axes[:-1], out))
    sizes = {"proj_size": state} if projected else {}
    p.attribute(nn.RNNBase, input_size=x.axes[-1], hidden_size=hidden, **sizes)
    return (y, *(Value((p.fresh(layers * directions, "one for each layer"), *h.axes[1:])) for h in states))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(p: Propagator, x: Value, hx: Any, *weights: Any) -> Any:
    """One step of a recurrent layer."""
    name = p.operator_name()
    states = list(hx) if name == "lstm_cell" else [hx]
    hidden = states[-1].axes[-1]
    for state in states:
        p.unify(state.axes[0], x.axes[0])
        p.unify(state.axes[-1], hidden)
    _gates(p, GATES[name.removesuffix("_cell")], x, states[0], hidden, weights)
    p.attribute(nn.RNNCellBase, input_size=x.axes[-1], hidden_size=hidden)
    return tuple(states) if name == "lstm_cell" else hx


def _gates(p: Propagator, gates: int, x: Value, h: Value, hidden: Axis, weights: Sequence[Any]) -> None:
    """Compute W_ih x + b_ih and W_hh h + b_hh; an index of their rows is a gate and a hidden unit."""
    biases = [*weights[2:], None, None]
    rows = grouped(p.fresh(gates, "a fixed number of gates"), hidden) if gates > 1 else hidden
    batch = batch_letters(len(x.axes) - 1)
    for value, weight, bias in zip((x, h), weights[:2], biases, strict=False):
        y = contract(p, (value, weight), (f"{batch}I", "OI"), f"{batch}O")
        p.unify(y.axes[-1], rows)
        add_bias(p, y.axes[-1], bias)
