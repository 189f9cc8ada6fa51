"""Claims about the cost of growing, measured in one run.

- Tracing VGG16 and finding its groups takes at most 2 s, a 12-layer BERT of base shape at most 10 s (first trace of a
  fresh process, which pays for torch.export's own warm-up, and median of later ones).
- Widening one group of VGG16 at width 64 takes at most 50 ms besides the two verification forwards.
- An idle ``Grower.step`` costs at most 1 % of a training step (VGG16, width 16, batch 128).

Run: python benchmarks/growth.py            (about two minutes on 2 cores; writes benchmarks/results/growth.json)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import auxin
from auxin.graph.capture import clone_tensors, normalise_inputs
from auxin.models import vgg16
from auxin.training.provenance import commit, hardware, versions

VGG = "from auxin.models import vgg16; model, inputs = vgg16(), torch.randn(2, 3, 32, 32)"
BERT = (
    "from transformers import BertConfig, BertModel; "
    "model, inputs = BertModel(BertConfig()), {'input_ids': torch.ones(2, 32, dtype=torch.long)}"
)
TRACES = """
import json, time, torch, auxin
{setup}
times = []
for _ in range({rounds}):
    start = time.perf_counter()
    groups = auxin.trace(model, inputs).groups
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def trace_seconds(setup: str, rounds: int) -> list[float]:
    """Return the seconds of every trace in a fresh process, the cold one first."""
    program = TRACES.format(setup=setup, rounds=rounds)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def widen_seconds(rounds: int) -> dict[str, float]:
    """Widen the groups of VGG16 at width 64 in turn; each event is paired with its two verification forwards."""
    model, inputs = vgg16(width=64), torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model(inputs).sum().backward()
    optimizer.step()
    graph = auxin.trace(model, inputs)
    names = [group.name for group in graph.growable()]
    besides, whole = [], []
    for i in range(rounds):
        spent: list[float] = []
        start = time.perf_counter()
        auxin.widen(model, names[i % len(names)], 1, graph=graph, method="net2net", optimizer=optimizer, seed=i)
        event = time.perf_counter() - start
        for _ in range(2):
            start = time.perf_counter()
            args, _ = clone_tensors(normalise_inputs(inputs))
            with torch.no_grad():
                model.eval()(*args)
            spent.append(time.perf_counter() - start)
        model.train()
        whole.append(event)
        besides.append(event - sum(spent))
    return {"event_seconds": statistics.median(whole), "besides_forward_seconds": statistics.median(besides)}


def idle_seconds(rounds: int) -> dict[str, float]:
    """Time a training step and a Grower.step that does nothing, in turns."""
    model = vgg16()
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    grower = auxin.Grower(model, optimizer, images[:2], trigger=auxin.every(10**6), budget=auxin.ratio(0.35))
    steps, idle = [], []
    for i in range(rounds):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
        start = time.perf_counter()
        grower.step(i, metrics={"val_loss": 1.0})
        idle.append(time.perf_counter() - start)
    return {"training_step_seconds": statistics.median(steps), "idle_step_seconds": statistics.median(idle)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=26, help="events and steps measured (default 26)")
    parser.add_argument("--traces", type=int, default=5, help="traces a model (default 5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "growth.json")
    options = parser.parse_args()
    vgg, bert = trace_seconds(VGG, options.traces), trace_seconds(BERT, options.traces)
    widen, idle = widen_seconds(options.rounds), idle_seconds(options.rounds)
    share = idle["idle_step_seconds"] / idle["training_step_seconds"]
    report = {
        "trace_vgg16": {"cold_seconds": vgg[0], "warm_median_seconds": statistics.median(vgg[1:]), "claim": "<= 2 s"},
        "trace_bert_base": {
            "cold_seconds": bert[0], "warm_median_seconds": statistics.median(bert[1:]), "claim": "<= 10 s",
        },
        "widen_vgg16_width_64": {**widen, "claim": "<= 0.05 s besides the verification forwards"},
        "idle_grower": {**idle, "share": share, "claim": "<= 1 % of a training step"},
        "holds": bool(
            vgg[0] <= 2 and bert[0] <= 10 and widen["besides_forward_seconds"] <= 0.05 and share <= 0.01
        ),
        "rounds": options.rounds,
        "traces": options.traces,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in list(report)[:5]}, indent=2))


if __name__ == "__main__":
    main()
