"""Which neurons to move after growth, and how far: a first look on CIFAR-10, to choose the defaults of ``Similarity``.

VGG16 of width 16 learns for three epochs, grows by 35 % in every width group (random: new neurons with zero outgoing
weights; net2net: copies), and is refined in one of the ways of ROWS. Each row starts from the same grown model. Noted
are mean μ over the twelve layers before and after (over all pairs, and over pairs with a neuron that may move), the
validation accuracy right after and with batch norms re-estimated on 20 batches, and for some rows the accuracy after
one more epoch, again with the same batches for all. SGD with Nesterov momentum 0.9, constant rate, bf16 autocast.

Run: python experiments/similarity/run.py --data path/to/cifar10 --seed 0     (about 8 minutes of one core a seed)
     python experiments/similarity/table.py
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import auxin
from auxin.data import ImageData, Loader, load
from auxin.models import build
from auxin.similarity import reestimate_norms
from auxin.training.provenance import commit, hardware, versions

EPOCHS, LR, BATCH, NORM_BATCHES = 3, 0.02, 128, 20
STEP = 0.1

# Name, growth methods, settings (None: no refinement), whether to train one more epoch.
ROWS: tuple[tuple[str, tuple[str, ...], dict[str, Any] | None, bool], ...] = (
    ("none", ("random", "net2net"), None, True),
    ("new, lr 0.03", ("random", "net2net"), {"neurons": "new", "lr": 0.03}, True),
    ("new, lr 0.1", ("random", "net2net"), {"neurons": "new", "lr": 0.1}, True),
    ("new, lr 0.3", ("random", "net2net"), {"neurons": "new", "lr": 0.3}, True),
    ("new and parents, lr 0.03", ("net2net",), {"neurons": "new_and_parents", "lr": 0.03}, False),
    ("new and parents, lr 0.1", ("net2net",), {"neurons": "new_and_parents", "lr": 0.1}, True),
    ("new and parents, lr 0.3", ("net2net",), {"neurons": "new_and_parents", "lr": 0.3}, False),
    ("all, lr 0.01", ("random", "net2net"), {"neurons": "all", "lr": 0.01}, True),
    ("all, lr 0.03", ("random", "net2net"), {"neurons": "all", "lr": 0.03}, False),
    ("all, lr 0.1", ("random", "net2net"), {"neurons": "all", "lr": 0.1}, True),
    ("all, lr 0.3", ("random", "net2net"), {"neurons": "all", "lr": 0.3}, False),
    ("all, plain SGD, lr 0.1", ("random", "net2net"), {"neurons": "all", "lr": 0.1, "relative": False}, False),
    ("all, lr 0.1, + 0.1 ω", ("random", "net2net"), {"neurons": "all", "lr": 0.1, "weight_change": 0.1}, False),
    (
        "all, lr 0.1, + 0.1 ω literal",
        ("random", "net2net"),
        {"neurons": "all", "lr": 0.1, "weight_change": 0.1, "literal": True},
        False,
    ),
)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader, epoch: int) -> float:
    """Train one epoch; return the seconds it took."""
    model.train()
    loader.set_epoch(epoch)
    started = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: nn.Module, loader: Loader) -> float:
    """Return the share of images classified rightly, 0 to 1."""
    model.eval()
    right = 0
    for images, labels in loader:
        with torch.autocast("cpu", torch.bfloat16):
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(loader.labels)


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of the experiment."""
    return torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=5e-4)


def grown(base: nn.Module, state: dict[str, Any], method: str, seed: int) -> tuple[Any, ...]:
    """Return a grown copy of the base model with its optimizer, its graph, and what was planned and done."""
    model = copy.deepcopy(base)
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(copy.deepcopy(state))
    graph = auxin.trace(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    plan = auxin.METHODS[method].propose(
        model, graph, auxin.ratio(0.35), generator=torch.Generator().manual_seed(1000 + seed)
    )
    event = auxin.surgery.apply(plan, model, graph, optimizer=optimizer)
    return model, optimizer, graph, plan, event


def measure(settings: dict[str, Any] | None, parts: tuple[Any, ...], inputs: Loader, val: Loader) -> dict[str, Any]:
    """Refine a grown model by some settings (None: only measure) and return the figures of its row."""
    model, _, graph, plan, event = parts
    # Without iterations the refinement only measures.
    similarity = auxin.Similarity(**({"iterations": 15} | (settings or {"iterations": 0})))
    record = similarity.refine(model, graph=graph, event=event, plan=plan)
    moved = [layer for layer in record.layers if layer.new_before is not None]
    row: dict[str, Any] = {
        "mean_similarity": [record.before, record.after],
        "moved_pairs": [sum(getattr(m, key) for m in moved) / len(moved) for key in ("new_before", "new_after")],
        "moved": sum(m.moved for m in moved) / len(moved),
        "max_change": record.max_change,
        "seconds": record.seconds,
        "accuracy": accuracy(model, val),
    }
    # On a copy: training goes on from the model as the refinement left it.
    estimated = copy.deepcopy(model)
    inputs.set_epoch(EPOCHS)
    reestimate_norms(estimated, (images for images, _ in inputs), NORM_BATCHES)
    row["accuracy_norms"] = accuracy(estimated, val)
    return row


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of rows to measure (again); the others stay in the results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data: ImageData = load(options.data)
    loader = Loader(data, "train", batch_size=BATCH, seed=options.seed, drop_last=True, channels_last=True)
    val = Loader(data, "val", batch_size=500, channels_last=True)
    torch.manual_seed(options.seed)
    base = build("vgg16", width=16).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(base)
    seconds = [train(base, optimizer, loader, epoch) for epoch in range(EPOCHS)]
    path = options.out / f"seed-{options.seed}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if options.only and path.exists() else []
    report: dict[str, Any] = {
        "seed": options.seed,
        "epochs": EPOCHS,
        "lr": LR,
        "batch_size": BATCH,
        "norm_batches": NORM_BATCHES,
        "defaults": asdict(auxin.Similarity()),
        "accuracy_before": accuracy(base, val),
        "epoch_seconds": seconds,
        "rows": [row for row in rows if row["row"] not in (options.only or ())],
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, methods, settings, train_more in ROWS:
        if options.only and name not in options.only:
            continue
        for method in methods:
            parts = grown(base, optimizer.state_dict(), method, options.seed)
            row = {"row": name, "method": method, "settings": settings, **measure(settings, parts, loader, val)}
            if train_more:
                row["epoch_seconds"] = train(parts[0], parts[1], loader, EPOCHS)
                row["accuracy_epoch"] = accuracy(parts[0], val)
                row["mean_similarity_epoch"] = _mean_similarity(parts)
            report["rows"].append(row)
            path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            print(method, name, {k: v for k, v in row.items() if k not in ("settings", "row", "method")}, flush=True)


def _mean_similarity(parts: tuple[Any, ...]) -> float:
    model, _, graph, _, _ = parts
    return auxin.Similarity(iterations=0, neurons="all").refine(model, graph=graph).before


if __name__ == "__main__":
    main()
