"""Targets: a full natural decision takes at most 0.1 training epoch and 1.5 times training's peak memory.

One decision scores the current model and every proposal (a layer at each depth site, four channels in each width group;
in SECNN's blocks for SECNN) on 512 images with the exact Gram form. Nets: SECNN as published and VGG16 of width 22; an
epoch is 45,000 images in batches of 128, fp32, Adam. Step and decision are timed in one process, alternating, medians;
by the clock and by the CPU time of the process, which other work disturbs less; it holds if both do. Memory is the peak
resident memory of a process that trains, and of one that trains and then decides, each above what it held before its
first step.

Run: python benchmarks/natural.py             (about two minutes on 2 cores; writes benchmarks/results/natural.json)
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
from typing import Any

import torch
from torch import nn

import auxin
from auxin.models import build
from auxin.training.provenance import commit, hardware, versions

BATCH, SAMPLES, IMAGES = 128, 512, 45_000
NETS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "secnn": ("secnn", {}, {"blocks": ["blocks.0", "blocks.1", "blocks.2"], "within": ["blocks"]}),
    "vgg16 of width 22": ("vgg16", {"width": 22}, {}),
}


def peak() -> float:
    """Return the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(net: str, decides: bool) -> dict[str, float]:
    """Train for some steps and, if asked, decide between them; return seconds and MiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    name, options, natural = NETS[net]
    model = build(name, **options)
    optimizer = torch.optim.Adam(model.parameters())
    images, labels = torch.randn(SAMPLES, 3, 32, 32), torch.randint(10, (SAMPLES,))
    graph = auxin.trace(model, images[:1])
    before = peak()
    steps: list[tuple[float, float]] = []
    decisions: list[tuple[float, float]] = []

    def timed(work: Any, kept: list[tuple[float, float]]) -> Any:
        clock, cpu = time.perf_counter(), time.process_time()
        result = work()
        kept.append((time.perf_counter() - clock, time.process_time() - cpu))
        return result

    def step(part: int) -> None:
        model.train()
        where = slice(part * BATCH, (part + 1) * BATCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[where]), labels[where]).backward()
        optimizer.step()

    proposals = 0
    for _ in range(3):
        for part in range(SAMPLES // BATCH):
            timed(lambda part=part: step(part), steps)
        if decides:
            trigger = auxin.natural(tau=1.0, data=(images, labels), num_samples=SAMPLES, **natural)
            decided = timed(
                lambda trigger=trigger: trigger.decide(model, graph, epoch=0, loss_fn=nn.functional.cross_entropy),
                decisions,
            )
            proposals = len(decided.proposals)
    row = {"mebibytes": peak() - before, "proposals": float(proposals)}
    for index, kind in enumerate(("", "cpu_")):
        row[f"{kind}step_seconds"] = statistics.median(one[index] for one in steps[1:])
        if decisions:
            row[f"{kind}decision_seconds"] = statistics.median(one[index] for one in decisions[1:])
    return row


def measure(net: str, decides: bool) -> dict[str, float]:
    """Return what a fresh process measures."""
    program = [sys.executable, __file__, "--child", net, str(int(decides))]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default 3)")
    parser.add_argument("--child", nargs=2, metavar=("NET", "DECIDES"), help="measure one process (internal)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "natural.json")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], options.child[1] == "1")))
        return
    rows = []
    for net in NETS:
        rounds = [{decides: measure(net, decides) for decides in (False, True)} for _ in range(options.rounds)]
        epochs = {
            kind: statistics.median(
                r[True][f"{kind}decision_seconds"] / (r[True][f"{kind}step_seconds"] * IMAGES / BATCH) for r in rounds
            )
            for kind in ("", "cpu_")
        }
        memory = statistics.median(r[True]["mebibytes"] / r[False]["mebibytes"] for r in rounds)
        rows.append({
            "net": net,
            "proposals": int(rounds[0][True]["proposals"]),
            "epochs": epochs[""],
            "cpu_epochs": epochs["cpu_"],
            "peak_memory_ratio": memory,
            "training_peak_mebibytes": statistics.median(r[False]["mebibytes"] for r in rounds),
            "holds": max(epochs.values()) <= 0.1 and memory <= 1.5,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "claim": __doc__.split("\n")[0],
        "rows": rows,
        "rounds": options.rounds,
        "samples": SAMPLES,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
