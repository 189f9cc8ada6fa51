"""What the nodes of a captured graph are called and which modules they belong to."""

from __future__ import annotations

import torch
from torch import nn

GROWN = "grown"
"""Name of the submodule that holds inserted blocks; sites inside it belong to the module they follow."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that run their children in order: an inserted child would be run twice."""
LINEAR = {"conv1d", "conv2d", "conv3d", "convolution", "linear", "conv_transpose1d", "conv_transpose2d"}
NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm"}


def operator_name(node: torch.fx.Node) -> str:
    """Return the name of a node's operator without its overload and the underscore of in-place variants."""
    name = str(getattr(node.target, "_opname", ""))
    return name.rstrip("_") if name.endswith("_") else name


def stack(node: torch.fx.Node) -> list[str]:
    """Return the paths of the modules whose forward a node belongs to, outermost first."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
