"""Capture an unmodified module as one graph of aten operators, with parameters bound by identity."""

from __future__ import annotations

import copy
import io
import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from auxin.errors import TraceError
from auxin.graph.lines import own_line
from auxin.graph.patches import no_checks_of_distributions, no_mask_detection
from auxin.graph.readings import NoteReadings, Reading, RepeatReadings
from auxin.graph.regions import inline_regions


def normalise_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from a tensor, a sequence of arguments, or a dict of keywords."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def clone_tensors(tree: Any, device: torch.device | None = None) -> Any:
    """Return a copy of nested inputs or outputs with every tensor detached and cloned, on a device if one is given."""
    return pytree.tree_map(lambda x: x.detach().to(device, copy=True) if isinstance(x, Tensor) else x, tree)


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of a nested output, those of data classes and distributions included.

    Other objects, such as a language model's cache, are left out.
    """
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, field.name) for field in fields(leaf)])
        elif isinstance(leaf, torch.distributions.Distribution):
            found += tensors_of(list(vars(leaf).values()))
    return found


def outputs_of(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    """Return the tensors of a model's output in eval mode.

    Args:
        model: The model.
        inputs: Positional and keyword arguments; they stay as they are.

    Raises:
        RuntimeError: What the forward raises, among others.
    """
    # A compiled forward does not know what has been inserted since.
    with evaluation(model), torch.compiler.set_stance("force_eager"):
        try:
            args, kwargs = clone_tensors(inputs)
            with torch.no_grad():
                return tensors_of(model(*args, **kwargs))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
        args, kwargs = clone_tensors(inputs)
        with torch.enable_grad():  # it differentiates something itself
            return [tensor.detach() for tensor in tensors_of(model(*args, **kwargs))]


def repeats(tensor: Tensor, dim: int) -> bool:
    """Return whether a tensor is the same at every index of a dimension."""
    return bool((tensor == tensor.narrow(dim, 0, 1)).all())


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module behind ``torch.compile``, data parallelism and lightning-fabric."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "_original_module", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


SHARDED = {"DTensor", "FSDPModule", "FullyShardedDataParallel"}
"""Parameters and modules that hold a part only, by name: their own modules take seconds to import."""


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model whose parameters are spread over processes.

    Args:
        model: The model.

    Raises:
        TraceError: If a parameter is a DTensor, or a module is wrapped by either kind of FSDP or within such a one.
    """
    parts = [*model.modules(), *model.parameters()]
    inside = any(getattr(module, "_is_fsdp_managed_module", False) for module in model.modules())
    if inside or any(kind.__name__ in SHARDED for part in parts for kind in type(part).__mro__):
        raise TraceError(
            "The model's parameters are sharded (FSDP or tensor parallelism), and a shard cannot grow: grow the model "
            "before it is sharded, or load its full state dict into a plain model, grow that and shard it anew."
        )


def copied(model: nn.Module, shared: Iterable[Any] = ()) -> nn.Module:
    """Return a deep copy of a model, also of one that keeps an activation as an attribute.

    Args:
        model: The model.
        shared: Objects within it that the copy shall use too.
    """
    kept = [tensor for module in model.modules() for tensor in pytree.tree_leaves(list(vars(module).values()))]
    detached = {id(tensor): tensor.detach() for tensor in kept if isinstance(tensor, Tensor) and not tensor.is_leaf}
    return copy.deepcopy(model, {**detached, **{id(one): one for one in shared}})


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without its fused inference paths; flags and the random state come back at the end.

    float32 is float32 meanwhile: the ten bits of TF32, a GPU's default for convolutions, would pass for a change of the
    function where a grown layer gets another kernel. Flags are set without ``train()``, which may do anything (merge
    adapters); what else it does in some models, forgetting tensors kept since they were in eval mode, is done here.
    """
    flags = [(module, module.training) for module in model.modules()]
    kept: list[tuple[dict[Any, Tensor], dict[Any, Tensor]]] = []
    fastpath, drawn = torch.backends.mha.get_fastpath_enabled(), random.getstate()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        gpus = sorted({p.device.index for p in model.parameters() if p.is_cuda})
        with _without_tf32(), torch.random.fork_rng(devices=gpus):
            for module, _ in flags:
                module.training = False
            kept = _empty_caches(model)
            yield
    finally:
        filled = {id(cache) for cache, _ in _empty_caches(model)}
        for cache, entries in kept:
            if id(cache) not in filled:  # the forward does not fill it: it holds something else
                cache.update(entries)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        random.setstate(drawn)
        for module, training in flags:
            module.training = training


def _empty_caches(model: nn.Module) -> list[tuple[dict[Any, Tensor], dict[Any, Tensor]]]:
    """Empty autocast's cache of weights, and dictionaries of tensors that are called a cache.

    Parameters have changed since, or will.

    Returns:
        Those that were not empty, each with what it held.
    """
    caches = [
        held for module in model.modules() for name, held in vars(module).items()
        if "cache" in name and isinstance(held, dict) and held and all(isinstance(v, Tensor) for v in held.values())
    ]  # fmt: skip
    kept = [(cache, dict(cache)) for cache in caches]
    for cache in caches:
        cache.clear()
    torch.clear_autocast_cache()
    return kept


@contextmanager
def kept_parameters(model: nn.Module) -> Iterator[None]:
    """Take back at the end what a forward did to parameters, such as a momentum encoder's."""
    saved = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, old in saved:
            if parameter.shape == old.shape and not torch.equal(parameter, old):
                parameter.data.copy_(old)


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Take back at the end what running a model did to its buffers, but for those with another shape by then."""
    saved = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        restore_buffers(model, saved)


def restore_buffers(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give a model's buffers earlier values, but for those with another shape now."""
    for name, buffer in model.named_buffers():
        old = saved.get(name)
        if old is not None and old.shape == buffer.shape and not torch.equal(buffer, old):
            buffer.data.copy_(old)


@contextmanager
def _without_tf32() -> Iterator[None]:
    # The names that torch.export reads too: it refuses to run after a mixture of them and the newer fp32_precision.
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep ``torch.export`` from logging a traceback and printing its graph before the error that it raises."""
    loggers = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def capture(model: nn.Module, example_inputs: Any) -> tuple[torch.fx.GraphModule, dict[str, str], set[str], set[str]]:
    """Export a module in eval mode.

    Args:
        model: Any module; left untouched.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        The graph module, the parameter or buffer name behind each such placeholder (tied ones share the first name),
        the paths of modules that return one bare tensor, and of those that return a tuple with a tensor in front.

    Raises:
        TraceError: If ``torch.export`` cannot capture the forward, it returns no tensor, or it looks at values and, for
            the example, leaves out parameters.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("A ScriptModule cannot grow: its code is fixed. Grow the Python module that it was made from.")
    refuse_sharded(model)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise TraceError(f"The parameter {lazy[0]} has no size yet: run the model once before it is traced.")
    args, kwargs = clone_tensors(normalise_inputs(example_inputs))
    hooked = _hooked(model)
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    bare: set[str] = set()
    first: set[str] = set()

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            bare.update(paths.get(id(module), ()))
        elif type(output) is tuple and output and isinstance(output[0], Tensor):
            first.update(paths.get(id(module), ()))

    def only_tensors(module: nn.Module, args: Any, output: Any) -> list[Tensor]:
        tensors = tensors_of(output)
        if not tensors:
            raise TraceError(
                f"The forward of {type(model).__name__} returns no tensor that can be followed but a "
                f"{type(output).__name__}: return tensors, or a tuple, dict or dataclass of them."
            )
        return tensors

    hooks = [
        nn.modules.module.register_module_forward_hook(note),
        model.register_forward_hook(only_tensors),
    ]
    try:
        with kept_buffers(model), evaluation(model), no_mask_detection(), no_checks_of_distributions():
            program, readings = _export(model, args, kwargs)
    except TraceError:
        raise
    except Exception as error:
        line = own_line(error)
        reason = str(error).strip().split("\n")[0].rstrip(".")
        hint = f"; the forward hook of {hooked} runs too: remove it while tracing if it is what fails" if hooked else ""
        raise TraceError(
            f"torch.export could not capture {type(model).__name__}{f', at {line}' if line else ''}: "
            f"{reason or type(error).__name__}. Check that the example inputs fit the forward{hint}."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    signature = program.graph_signature
    first_name: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        first_name.setdefault(id(tensor), name)
    by_name = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    bound = {
        placeholder: first_name[id(by_name[name])]
        for placeholder, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
        if name in by_name
    }
    for node in program.graph_module.graph.nodes:
        node.meta["constant"] = signature.inputs_to_lifted_tensor_constants.get(str(node.target))
    if readings:
        used = {bound.get(str(n.target)) for n in program.graph_module.graph.nodes if n.op == "placeholder" and n.users}
        _mind_readings(model, readings, used)
    inline_regions(program.graph_module)
    return program.graph_module, bound, bare, first


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, list[Reading]]:
    """Export a model; where that fails for want of numbers, with those that the forward reads for the example."""
    try:
        with quiet_export():
            return torch.export.export(model, args, kwargs or None, strict=False), []
    except TraceError:
        raise
    except Exception as error:
        given = clone_tensors((args, kwargs))
        try:
            eager = torch.compiler.set_stance("force_eager")
            with eager, warnings.catch_warnings(action="ignore"), kept_parameters(model), NoteReadings() as noted:
                model(*given[0], **given[1])
            if not noted.readings:
                raise error
            with quiet_export(), RepeatReadings(noted.readings) as repeated:
                program = torch.export.export(model, args, kwargs or None, strict=False)
        except Exception:
            raise error from None
        return program, repeated.given


def _mind_readings(model: nn.Module, readings: Iterable[Reading], used: Set[str | None]) -> None:
    """Warn of a capture that follows one way through the forward; refuse one that leaves out parameters."""
    looks = [reading for reading in readings if reading.reader is not torch.autograd.grad]  # that one is followed
    if not looks:
        return
    name, lines = type(model).__name__, [line for line in dict.fromkeys(look.line for look in looks) if line]
    more = f"; and {len(lines) - 3} more lines" if len(lines) > 3 else ""
    where = f" ({'; '.join(lines[:3])}{more})" if lines else ""  # typed in by hand
    unused = [parameter for parameter, _ in model.named_parameters() if parameter not in used]
    if unused:
        raise TraceError(
            f"The forward of {name} looks at the values of its tensors{where}, and for the example inputs it "
            f"leaves out {unused[0]}, so that what reads which units is not known: give an example, such as a larger "
            "batch, for which it uses every parameter."
        )
    warnings.warn(
        f"The forward of {name} looks at the values of its tensors{where}: auxin follows what it does for the "
        "example inputs.",
        stacklevel=2,
    )


def _hooked(model: nn.Module) -> str:
    """Return the first module with a forward hook of the user's own; empty if there is none."""
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith(("torch.", "auxin.")):
                return repr(path or type(module).__name__)
    return ""


def source_code(node: torch.fx.Node) -> str:
    """Return the source lines that led to a node, outermost first, without file names and line numbers."""
    lines = (node.meta.get("stack_trace") or "").strip().split("\n")
    return "\n".join(line.strip() for line in lines if not line.strip().startswith("File "))


def source_line(node: torch.fx.Node) -> str:
    """Return the user's innermost source line of a node, as ``file:line: code``; empty if unknown."""
    lines = (node.meta.get("stack_trace") or "").strip().split("\n")
    frames = [
        (lines[i].strip(), lines[i + 1].strip()) for i in range(len(lines) - 1) if lines[i].strip().startswith("File ")
    ]
    if not frames:
        return ""
    users = [frame for frame in frames if "/torch/nn/" not in frame[0] and "/torch/_" not in frame[0]]
    where, code = (users or frames)[-1]
    file, _, rest = where.removeprefix('File "').partition('", line ')
    file = file.rpartition("site-packages/")[2]
    return f"{file}:{rest.split(',')[0]}: {code}"
