"""Propagation rules: norms, and weights that are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from auxin.graph.propagate import Propagator, grouped, rule
from auxin.graph.values import Value


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def batch_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *_: Any) -> Any:
    """One scale, shift, mean and variance per channel (dimension 1)."""
    _channel_norm(p, x, weight, bias, mean, variance)
    for axis in (x.axes[0], *x.axes[2:]):  # in training; and in eval mode where a weight is standardised by itself
        p.inexact(axis, "normalises over it")
    p.attribute(nn.modules.batchnorm._BatchNorm, num_features=x.axes[1])
    return x


@rule("instance_norm")
def instance_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *args: Any) -> Value:
    """Like batch norm, with statistics per image."""
    _channel_norm(p, x, weight, bias, mean, variance)
    if args[:1] == (True,):
        for axis in x.axes[2:]:
            p.inexact(axis, "normalises over it")
    p.attribute(nn.modules.instancenorm._InstanceNorm, num_features=x.axes[1])
    return x


def _channel_norm(p: Propagator, x: Value, weight: Any, bias: Any, mean: Any, variance: Any) -> None:
    for value, role in ((weight, "scale"), (bias, "shift"), (mean, "mean"), (variance, "variance")):
        if isinstance(value, Value):
            p.unify(x.axes[1], value.axes[0])
            p.tag(value, 0, role)  # type: ignore[arg-type]


@rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(p: Propagator, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any) -> Value:
    """Normalise over the last dimensions together: new units change everyone's mean and scale."""
    last = range(-len(shape), 0)
    for d in last:
        p.inexact(x.axes[d], "normalises over it")
        for value, role in ((weight, "scale"), (bias, "shift")):
            if isinstance(value, Value):
                p.unify(x.axes[d], value.axes[d])
                p.tag(value, d, role)  # type: ignore[arg-type]
    p.attribute((nn.LayerNorm, nn.RMSNorm), normalized_shape=[x.axes[d] for d in last])
    return x


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(p: Propagator, v: Value, g: Value, dim: int = 0) -> Any:
    """Compute g·v/‖v‖ with one norm per index of ``dim``: new columns of zeros keep it, shared ones do not."""
    for d, axis in enumerate(v.axes):
        if d == dim % len(v.axes):
            p.unify(axis, g.axes[d])
            p.tag(g, d, "scale")
            p.normed(v, d)
        else:
            p.norm_over(v, d, "normalises over it")
            p.freeze(g.axes[d], "keeps it at one")
    weight = Value(v.axes, v.sources)
    return (weight, weight) if isinstance(p.node.meta["val"], (tuple, list)) else weight


@rule("group_norm")
def group_norm(p: Propagator, x: Value, groups: int, weight: Any = None, bias: Any = None, *_: Any) -> Value:
    """Channels are groups·members: whole groups are added, members would change their group's statistics."""
    group_axis, members = p.fresh(groups), p.fresh(x.axes[1].size // groups)
    p.inexact(members, "normalises over it")
    p.unify(x.axes[1], grouped(group_axis, members))
    for value, role in ((weight, "scale"), (bias, "shift")):
        if isinstance(value, Value):
            p.unify(x.axes[1], value.axes[0])
            p.tag(value, 0, role)  # type: ignore[arg-type]
    p.attribute(nn.GroupNorm, num_groups=group_axis, num_channels=x.axes[1])
    return x
