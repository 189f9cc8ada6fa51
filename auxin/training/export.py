"""A model as files that run without auxin: plain weights, a ``torch.export`` program, and what they need to be told."""

from __future__ import annotations

import copy
import io
import json
import os
import secrets
import shutil
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from auxin.errors import CheckpointError, ConfigError
from auxin.graph.capture import quiet_export
from auxin.training import checkpoint as checkpoints
from auxin.training.checkpoint import not_written, write_durably
from auxin.training.folder import RunFolder
from auxin.training.ladder import load_model
from auxin.training.provenance import versions
from auxin.training.selection import Choice, facts_of

WEIGHTS, PROGRAM, CARD, README = "model.safetensors", "model.pt2", "model.json", "README.md"
FILES = {WEIGHTS, PROGRAM, CARD, README}

_README = """# {name}

{parameters:,} parameters, {flops:,} FLOPs an image, validation accuracy {val_accuracy:.2%}{test}.

`model.pt2` runs with torch {torch} alone:

```python
import torch
model = torch.export.load("model.pt2").module()
logits = model((images / 255 - torch.tensor({mean}).view(-1, 1, 1)) / torch.tensor({std}).view(-1, 1, 1))
```

`images`: shape ({batch}, {shape}), values 0 to 255. `logits`: one number per class, in the order of `model.json`.
`model.safetensors` holds the same weights: `model.load_state_dict(safetensors.torch.load_file("model.safetensors"))`
puts them, or others of the same names and shapes, into the program.
"""


def export_model(run: RunFolder, chosen: Choice, out: Path, force: bool = False) -> Path:
    """Write a checkpoint's model as a folder of ``model.safetensors``, ``model.pt2``, ``model.json`` and ``README.md``.

    The folder appears whole or not at all: it is written beside its place and then renamed.

    Args:
        run: The run it comes from.
        chosen: The checkpoint.
        out: The folder.
        force: Whether to replace an earlier export there.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is something already that may not be replaced.
        CheckpointError: If the checkpoint is damaged, the model cannot be exported, or the disk does not take it.
    """
    out = out.resolve()
    _require_place(out, force)
    saved = checkpoints.load(chosen.path)
    facts = facts_of(saved)
    model = load_model(chosen.path)
    program, any_batch = export_program(model, torch.zeros(2, *facts["shape"]))
    card = _card(run, chosen, saved, facts, any_batch)
    # In memory first: where the disk is full, torch's own writer ends the process.
    program_file = io.BytesIO()
    torch.export.save(program, program_file)
    draft = out.with_name(f".{out.name}-{secrets.token_hex(4)}.part")
    try:
        draft.mkdir(parents=True)
        write_durably(draft / PROGRAM, program_file.getvalue())
        weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
        write_durably(draft / WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))
        write_durably(draft / CARD, (json.dumps(card, indent=2) + "\n").encode())
        write_durably(draft / README, _readme(card).encode())
        _put_in_place(draft, out)
    except OSError as error:
        raise CheckpointError(f"{not_written(out, error)} and try again.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def export_program(model: nn.Module, images: Tensor) -> tuple[torch.export.ExportedProgram, bool]:
    """Return a model's ``torch.export`` program in eval mode, checked against the model.

    Args:
        model: Left as it is.
        images: Two images or more, (N, C, H, W).

    Returns:
        The program, and whether it takes any number of images; if not, it takes one.

    Raises:
        CheckpointError: If it cannot be exported, or computes something else.
    """
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(images.shape, generator=generator)
    for any_batch in (True, False):
        example = probe if any_batch else probe[:1]
        dynamic = ({0: torch.export.Dim("batch")},) if any_batch else None
        try:
            with torch.no_grad(), warnings.catch_warnings(), quiet_export():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, (example,), dynamic_shapes=dynamic, strict=False)
                for batch in (example, torch.cat([probe, probe[:1]]))[: 1 + any_batch]:
                    torch.testing.assert_close(program.module()(batch), model(batch), rtol=1e-4, atol=1e-4)
                return program, any_batch
        except Exception as error:  # torch.export raises whatever the model's forward or its own passes do
            failure = error
    reason = " ".join(str(failure).split())[:200]
    raise CheckpointError(f"The model cannot be exported ({reason}): use the checkpoint itself.") from failure


def _card(
    run: RunFolder, chosen: Choice, saved: checkpoints.Checkpoint, facts: dict[str, Any], any_batch: bool
) -> dict[str, Any]:
    return {
        "format": "auxin-export",
        "version": 1,
        "name": saved.config["name"],
        "classes": facts["classes"],
        "input": {
            "shape": [None if any_batch else 1, *facts["shape"]],
            "layout": "NCHW, null is any number of images",
            "preprocessing": "(pixels / 255 - mean) / std, channel by channel",
            "mean": facts["mean"],
            "std": facts["std"],
        },
        "output": "logits, (N, number of classes)",
        "parameters": chosen.parameters,
        "flops": chosen.flops,
        "val_accuracy": chosen.val_accuracy,
        "test_accuracy": chosen.test_accuracy,
        "source": {
            "run": run.path.name,
            "rung": chosen.name,
            "epoch": saved.epoch + 1,
            # One for each time that the run was begun or resumed, until this checkpoint.
            "commits": [{name: one[name] for name in ("commit", "dirty")} for one in saved.run.get("sessions", [])],
            "config": saved.config,
        },
        "versions": versions(),
        "files": {WEIGHTS: "weights by name (safetensors)", PROGRAM: "program (torch.export)"},
        "load": 'torch.export.load("model.pt2").module()',
    }


def _readme(card: dict[str, Any]) -> str:
    batch, *shape = card["input"]["shape"]
    test = card["test_accuracy"]
    return _README.format(
        **{key: card[key] for key in ("name", "parameters", "flops", "val_accuracy")},
        test="" if test is None else f", test accuracy {test:.2%}",
        torch=card["versions"].get("torch", ""),
        mean=card["input"]["mean"],
        std=card["input"]["std"],
        batch=batch or "N",
        shape=", ".join(map(str, shape)),
    )


def _require_place(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir() or not {path.name for path in out.iterdir()} <= FILES:
        raise ConfigError(f"{out} exists and is not an earlier export: choose another folder.")
    if not force:
        raise ConfigError(f"{out} exists: choose another folder, or give --force to replace it.")


def _put_in_place(draft: Path, out: Path) -> None:
    if not out.exists():
        os.rename(draft, out)
        return
    old = out.with_name(f".{out.name}-{secrets.token_hex(4)}.old")
    os.rename(out, old)
    os.rename(draft, out)
    shutil.rmtree(old)
