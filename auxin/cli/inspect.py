"""``auxin inspect``: show what can grow in a user's own model, and why the rest cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from auxin.cli.parser import CommandParser
from auxin.errors import AuxinError, ConfigError
from auxin.graph import Graph, trace
from auxin.models import build
from auxin.models.table import seeded
from auxin.trial import try_group

_DESCRIPTION = """Show the width groups and depth sites of a model, and why the frozen ones cannot grow.

MODEL is package.module:factory, a function or class that returns an nn.Module (the current folder is searched first),
or the name of one of auxin's models. Give one --input per argument of its forward: a shape, and a type where it is not
float32.

examples:
  auxin inspect vgg16 --input 1,3,32,32
  auxin inspect my_models:make_net --input 1,3,64,64 --check
  auxin inspect my_models:Encoder --input 1,128:int64 --input 1,128:bool
"""

_SIGNED = ("int8", "int16", "int32", "int64")
_DTYPES = ("float16", "bfloat16", "float32", "float64", "bool", "uint8", *_SIGNED)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows ``auxin inspect``.

    Returns:
        Exit code 0, or 1 where ``--check`` found a group that does not grow.
    """
    parser = CommandParser("auxin inspect", _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="package.module:factory, or a name of auxin.models")
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="SHAPE[:TYPE]",
        help="an example input such as 1,3,32,32 or 1,128:int64; repeat it for further arguments",
    )
    parser.add_argument("--check", action="store_true", help="try every growable group, and say which really grow")
    options = parser.parse_args(arguments)
    inputs = tuple(example_input(text, index) for index, text in enumerate(options.input))
    with seeded(0):
        model = build(options.model).eval()
    graph = trace(model, inputs)
    print(graph)
    return check(model, graph) if options.check else 0


def example_input(text: str, seed: int = 0) -> Tensor:
    """Make an example input from its description.

    Args:
        text: Shape and type, such as ``1,3,32,32`` or ``1,128:int64``; float32 without a type.
        seed: Seed of its values: normal for floating types, 0 or 1 for the others, so that they index any table.

    Returns:
        The tensor.

    Raises:
        ConfigError: If the text is not a shape, or the type is not known.

    Example:
        >>> example_input("1,128:int64").shape
        torch.Size([1, 128])
    """
    shape, _, kind = text.partition(":")
    if not re.fullmatch(r"\d+(,\d+)*", shape):
        raise ConfigError(f"--input {text}: {shape!r} is not a shape; write sizes with commas, such as 1,3,32,32.")
    if kind not in ("", *_DTYPES):
        raise ConfigError(f"--input {text}: there is no type {kind!r}; choose one of {', '.join(_DTYPES)}.")
    sizes = [int(size) for size in shape.split(",")]
    dtype: torch.dtype = getattr(torch, kind or "float32")
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    return torch.randint(0, 2, sizes, generator=generator).to(dtype)


def check(model: nn.Module, graph: Graph) -> int:
    """Grow each growable group of the model by one unit, take it back, and print which ones really grow.

    Args:
        model: Left as it is.
        graph: Its graph.

    Returns:
        0, or 1 if a group did not grow.
    """
    names = [group.name for group in graph.growable(allow_inexact=True)]
    failed = 0
    print(f"\nTrying {len(names)} groups, one unit each:")
    for name in names:
        try:
            event = try_group(model, graph, name, allow_inexact=True)
        except AuxinError as error:
            failed += 1
            print(f"  {name:<40} FAILS  {' '.join(str(error).split())}")
        else:
            print(f"  {name:<40} grows  max |change of output| {event.max_change:.1e}")
    print(f"{len(names) - failed} of {len(names)} grow.")
    return 1 if failed else 0
