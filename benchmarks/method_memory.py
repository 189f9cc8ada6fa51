"""Targets: an event needs at most twice the peak memory of training, statistics over one batch three steps.

Memory: the peak resident memory of a process that trains for some steps, and of one that trains and then grows every
group by 35 %, each above what it held before its first step; VGG16 and MobileNetV1 of width 22, batch 128, fp32.
Statistics: one product of the splitting matrices of all neurons of all groups with one direction each, over one batch,
set-up included, against the median training step of the same process; by the clock and by the CPU time of the process,
which other work on the machine disturbs less. It holds if both do.

Run: python benchmarks/method_memory.py       (about seven minutes on 2 cores; writes results/method_memory.json)
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

import auxin
from auxin.methods import METHODS
from auxin.models import build
from auxin.statistics.batches import measuring, take_batches
from auxin.statistics.splitting import SplittingMatrices
from auxin.training.provenance import commit, hardware, versions

BATCH, WIDTH, MODELS = 128, 22, ("vgg16", "mobilenet_v1")


def peak() -> float:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(model_name: str, method: str) -> dict[str, float]:
    """Train, and grow unless the method is ``none``; return memory in MiB and times in seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(model_name, width=WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))) for _ in range(8)]
    grower = auxin.Grower(model, optimizer, batches[0][0][:2], method="random", budget=auxin.ratio(0.35))
    before, steps, cpu_steps = peak(), [], []
    for images, labels in batches:
        start, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
        cpu_steps.append(time.process_time() - cpu)
    result = {"step_seconds": statistics.median(steps[2:]), "cpu_step_seconds": statistics.median(cpu_steps[2:])}
    if method == "statistics":
        found, loss = take_batches(model, batches, nn.functional.cross_entropy, 1, "splitting")
        names = [group.name for group in grower.graph.growable()]
        times, cpu_times = [], []
        for _ in range(5):
            start, cpu = time.perf_counter(), time.process_time()
            with measuring(model):
                matrices = SplittingMatrices(model, grower.graph, found, loss, names)
                matrices.product({name: torch.randn_like(matrices.weights(name)) for name in matrices.units})
            times.append(time.perf_counter() - start)
            cpu_times.append(time.process_time() - cpu)
        result["statistics_seconds"] = statistics.median(times)
        result["cpu_statistics_seconds"] = statistics.median(cpu_times)
    elif method != "none":
        grower.method = METHODS[method]
        grower.grow(loader=batches, loss_fn=nn.functional.cross_entropy)
    return {**result, "mebibytes": peak() - before}


def measure(model_name: str, method: str) -> dict[str, float]:
    """Return what a fresh process measures."""
    program = [sys.executable, __file__, "--child", model_name, method]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default 3)")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "METHOD"), help="measure one process (internal)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "method_memory.json")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    rows = []
    for name in MODELS:
        rounds = [{m: measure(name, m) for m in ("none", "statistics", *METHODS)} for _ in range(options.rounds)]
        for method in METHODS:
            ratio = statistics.median(r[method]["mebibytes"] / r["none"]["mebibytes"] for r in rounds)
            rows.append({"model": name, "method": method, "peak_memory_ratio": ratio, "holds": ratio <= 2})
        steps, cpu_steps = (
            statistics.median(
                r["statistics"][f"{kind}statistics_seconds"] / r["statistics"][f"{kind}step_seconds"] for r in rounds
            )
            for kind in ("", "cpu_")
        )
        row = {
            "model": name,
            "statistics": "splitting product",
            "training_steps": steps,
            "cpu_training_steps": cpu_steps,
        }
        rows.append({**row, "holds": max(steps, cpu_steps) <= 3})
        training = statistics.median(r["none"]["mebibytes"] for r in rounds)
        rows.append({"model": name, "training_peak_mebibytes": training})
    report = {
        "claim": __doc__.split("\n")[0],
        "rows": rows,
        "rounds": options.rounds,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
