"""Far from the start, or moved apart afterwards? Orthogonal growth against random growth with the refinement.

VGG16 of width 16 learns for two epochs of CIFAR-10, grows by 35 % in every width group in each of the ways of ROWS, and
learns for one more epoch with the same batches. Random and orthogonal neurons come from the same draws. Noted are μ
over pairs with a new neuron (mean over the layers), the seconds of planning, surgery and refinement (median of REPEATS
events, taken in turns), and the validation accuracy right after and one epoch later. The rest is as in ``run.py``.

Run: python experiments/similarity/draw.py --data path/to/cifar10 --seed 0     (about 4 minutes of one core a seed)
     python experiments/similarity/draw_table.py
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from run import BATCH, LR, accuracy, optimizer_of, train
from torch import nn

import auxin
from auxin.data import Loader, load
from auxin.models import build
from auxin.training.provenance import commit, hardware, versions

EPOCHS, REPEATS = 2, 5

# Name, growth method, settings of the refinement (None: none).
ROWS: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
    ("none", "random", None),
    ("new, 15 steps, lr 0.03 (default)", "random", {}),
    ("new, 15 steps, lr 0.1", "random", {"lr": 0.1}),
    ("new, 30 steps, lr 0.1", "random", {"iterations": 30, "lr": 0.1}),
    ("none", "orthogonal", None),
)


def event_of(base: nn.Module, state: dict[str, Any], method: str, settings: dict[str, Any] | None, seed: int) -> Any:
    """Return a grown and refined copy of the base model, its optimizer, μ of new pairs, max |Δ|, and the seconds."""
    model = copy.deepcopy(base)
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(copy.deepcopy(state))
    graph = auxin.trace(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(1000 + seed)
    started = time.perf_counter()
    plan = auxin.METHODS[method].propose(model, graph, auxin.ratio(0.35), generator=generator)
    event = auxin.surgery.apply(plan, model, graph, optimizer=optimizer)
    if settings is not None:
        auxin.Similarity(**settings).refine(model, graph=graph, event=event, plan=plan)
    seconds = time.perf_counter() - started
    # Without iterations the refinement only measures.
    record = auxin.Similarity(iterations=0).refine(model, graph=graph, event=event)
    new = [layer.new_after for layer in record.layers if layer.new_after is not None]
    return model, optimizer, sum(new) / len(new), event.max_change, seconds


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(options.data)
    loader = Loader(data, "train", batch_size=BATCH, seed=options.seed, drop_last=True, channels_last=True)
    val = Loader(data, "val", batch_size=500, channels_last=True)
    torch.manual_seed(options.seed)
    base = build("vgg16", width=16).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(base)
    epoch_seconds = [train(base, optimizer, loader, epoch) for epoch in range(EPOCHS)]
    report: dict[str, Any] = {
        "seed": options.seed,
        "epochs": EPOCHS,
        "lr": LR,
        "batch_size": BATCH,
        "repeats": REPEATS,
        "accuracy_before": accuracy(base, val),
        "epoch_seconds": epoch_seconds,
        "rows": [],
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    state = optimizer.state_dict()
    clocks: list[list[float]] = [[] for _ in ROWS]
    for _ in range(REPEATS):
        for clock, (_, method, settings) in zip(clocks, ROWS, strict=True):
            clock.append(event_of(base, state, method, settings, options.seed)[-1])
    for clock, (name, method, settings) in zip(clocks, ROWS, strict=True):
        model, moments, similarity, change, _ = event_of(base, state, method, settings, options.seed)
        row = {
            "row": name,
            "method": method,
            "settings": settings,
            "new_pairs": similarity,
            "max_change": change,
            "seconds": statistics.median(clock),
            "accuracy": accuracy(model, val),
            "epoch_seconds": train(model, moments, loader, EPOCHS),
            "accuracy_epoch": accuracy(model, val),
        }
        report["rows"].append(row)
        print(row, flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"draw-{options.seed}.json"
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
