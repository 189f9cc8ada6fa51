"""Neurons drawn far apart by what they compute, or by their weights, or moved apart afterwards?

SmallCNN of width 16 learns for three epochs of CIFAR-10, grows by 50 % in every width group in each of the ways of
ROWS, and learns for two more epochs with the same batches. All new neurons come from the same draws. Noted are, over
pairs with a new neuron and averaged over the layers, μ of the weights and the mean |correlation| of activations on
validation images (``auxin.similarity.activation_similarity``) right after growth and at the end; the seconds of the
event (planning, surgery, refinement; median of REPEATS, taken in turns), and the validation accuracy right after and at
the end. The rest is as in ``run.py``.

Run: python experiments/similarity/activation.py --data path/to/cifar10 --seed 0   (about 2 minutes of one core a seed)
     python experiments/similarity/activation.py --table
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
from auxin.methods import Orthogonal, Random
from auxin.models import build
from auxin.training.provenance import commit, hardware, versions
from auxin.types import Event, Method

EPOCHS, MORE, WIDTH, RATIO, REPEATS = 3, 2, 16, 0.5, 3
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- table: python experiments/similarity/activation.py --table -->", "<!-- end of activation table -->"

# Name, growth method, settings of the refinement (None: none). 90 steps cost about as much as reading activations.
ROWS: tuple[tuple[str, Method, dict[str, Any] | None], ...] = (
    ("random", Random(), None),
    ("random, refined: 15 steps, lr 0.03 (default)", Random(), {}),
    ("random, refined: 90 steps, lr 0.1", Random(), {"iterations": 90, "lr": 0.1}),
    ("orthogonal by weight", Orthogonal(), None),
    ("orthogonal by activation", Orthogonal(criterion="activation"), None),
)


def event_of(
    base: nn.Module, state: dict[str, Any], method: Method, settings: dict[str, Any] | None, loader: Loader, seed: int
) -> tuple[nn.Module, torch.optim.SGD, auxin.Graph, Event, float]:
    """Return a grown and refined copy of the base model with its optimizer, graph and event, and the seconds."""
    model = copy.deepcopy(base)
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(copy.deepcopy(state))
    graph = auxin.trace(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(1000 + seed)
    loader.set_epoch(EPOCHS)
    started = time.perf_counter()
    plan = method.propose(model, graph, auxin.ratio(RATIO), generator=generator, batches=loader)
    event = auxin.surgery.apply(plan, model, graph, optimizer=optimizer)
    if settings is not None:
        auxin.Similarity(**settings).refine(model, graph=graph, event=event, plan=plan)
    return model, optimizer, graph, event, time.perf_counter() - started


def alike(model: nn.Module, graph: auxin.Graph, event: Event, inputs: list[torch.Tensor]) -> tuple[float, float]:
    """Return μ of the weights and the mean |correlation| of activations over pairs with a new neuron."""
    found = auxin.similarity.activation_similarity(model, inputs, graph=graph, event=event)
    # Without iterations the refinement only measures.
    record = auxin.Similarity(iterations=0).refine(model, graph=graph, event=event)
    weights = [layer.new_before for layer in record.layers if layer.new_before is not None]
    return statistics.mean(weights), statistics.mean(found.values())


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of CIFAR-10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="write the table into README.md instead")
    options = parser.parse_args()
    if options.table:
        write_table()
        return
    torch.set_num_threads(1)
    data = load(options.data)
    loader = Loader(data, "train", batch_size=BATCH, seed=options.seed, drop_last=True, channels_last=True)
    val = Loader(data, "val", batch_size=500, channels_last=True)
    inputs = [images for images, _ in val]
    torch.manual_seed(options.seed)
    base = build("small_cnn", in_channels=3, width=WIDTH).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(base)
    epoch_seconds = [train(base, optimizer, loader, epoch) for epoch in range(EPOCHS)]
    report: dict[str, Any] = {
        "seed": options.seed, "epochs": EPOCHS, "more": MORE, "width": WIDTH, "ratio": RATIO, "lr": LR,
        "batch_size": BATCH, "repeats": REPEATS, "accuracy_before": accuracy(base, val),
        "epoch_seconds": epoch_seconds, "rows": [], "date": time.strftime("%Y-%m-%d"), **commit(),
        "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    state = optimizer.state_dict()
    clocks: list[list[float]] = [[] for _ in ROWS]
    for _ in range(REPEATS):
        for clock, (_, method, settings) in zip(clocks, ROWS, strict=True):
            clock.append(event_of(base, state, method, settings, loader, options.seed)[-1])
    for clock, (name, method, settings) in zip(clocks, ROWS, strict=True):
        model, moments, graph, event, _ = event_of(base, state, method, settings, loader, options.seed)
        weights, activations = alike(model, graph, event, inputs)
        row: dict[str, Any] = {"row": name, "settings": settings, "seconds": statistics.median(clock)}
        row |= {"weights": weights, "activations": activations, "accuracy": accuracy(model, val)}
        for epoch in range(EPOCHS, EPOCHS + MORE):
            train(model, moments, loader, epoch)
        weights, activations = alike(model, graph, event, inputs)
        row |= {"weights_end": weights, "activations_end": activations, "accuracy_end": accuracy(model, val)}
        report["rows"].append(row)
        print(row, flush=True)
    path = RESULTS / f"activation-{options.seed}.json"
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table() -> None:
    """Write the Markdown table of all results into README.md, between two marks; other text is left alone."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("activation-*.json"))]
    columns = ("growth", "μ of weights", "abs. correlation of activations", "the same at the end")
    columns += ("seconds of the event", "acc. right after", "acc. at the end", "minus random")
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for index in range(len(reports[0]["rows"])):
        rows = [report["rows"][index] for report in reports]
        gains = [
            100 * (report["rows"][index]["accuracy_end"] - report["rows"][0]["accuracy_end"]) for report in reports
        ]
        cells = [rows[0]["row"]]
        cells += [f"{statistics.mean(r[key] for r in rows):.3f}" for key in ("weights", "activations")]
        cells += [f"{statistics.mean(r['activations_end'] for r in rows):.3f}"]
        cells += [f"{statistics.mean(r['seconds'] for r in rows):.2f}"]
        cells += [_spread([100 * r[key] for r in rows]) for key in ("accuracy", "accuracy_end")]
        cells += ["" if index == 0 else ", ".join(f"{gain:+.1f}" for gain in gains)]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = ", ".join(str(report["seed"]) for report in reports)
    before = ", ".join(f"{100 * report['accuracy_before']:.1f}" for report in reports)
    hosts = {(r["hardware"]["processor"], r["hardware"]["threads"], r["versions"]["torch"]) for r in reports}
    places = "; ".join(f"{name}, {threads} thread(s), torch {torch}" for name, threads, torch in sorted(hosts))
    note = f"Seeds {seeds}; validation accuracy before growth: {before} %. Made on: {places}."
    readme = Path(__file__).parent / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    text = "\n".join([*lines, "", note])
    readme.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
