"""Claim: on a CPU, a bf16 training step of MobileNetV1 takes at most 0.6 of the time, one of VGG16 no more than before.

What ``auxin train`` does for it: memory that is freed stays with the process (``auxin/training/allocator.py``), and
strided depthwise convolutions, whose bf16 gradients fall back to reference code, run in float32
(``auxin/training/depthwise.py``). Each figure is CPU time per step in a fresh process, with both, one or neither, in
turns; the ratios are those of the medians. Batch 128, 32×32 images, channels_last, SGD with Nesterov momentum.

Run: python benchmarks/cpu_step.py           (about five minutes on one core; writes benchmarks/results/cpu_step.json)
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from auxin.models import build
from auxin.training.allocator import keep_freed_memory
from auxin.training.depthwise import depthwise_in_float32
from auxin.training.provenance import commit, hardware, versions

NETS = (("vgg16", 16), ("vgg16", 55), ("mobilenet_v1", 32), ("mobilenet_v1", 106))
WAYS = {"neither": (False, False), "allocator": (True, False), "depthwise": (False, True), "both": (True, True)}
CLAIM = 0.6


def cpu_milliseconds(name: str, width: int, way: str, steps: int) -> float:
    """Return the CPU time of one training step, user and system, on one thread of this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep, float32 = WAYS[way]
    if keep:
        keep_freed_memory()
    model = build(name, width=width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (128,))

    def step() -> None:
        with depthwise_in_float32(model) if float32 else nullcontext():
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    for _ in range(3):
        step()
    start = spent()
    for _ in range(steps):
        step()
    return (spent() - start) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, in turn (default 3)")
    parser.add_argument("--steps", type=int, default=12, help="steps a process (default 12)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu_step.json")
    parser.add_argument("--one", nargs=3, metavar=("NET", "WIDTH", "WAY"), help="measure one and print milliseconds")
    options = parser.parse_args()
    if options.one:
        name, width, way = options.one
        print(cpu_milliseconds(name, int(width), way, options.steps))
        return
    rows = []
    for name, width in NETS:
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--steps", str(options.steps), "--one", name, str(width), way]
                taken[way].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        medians = {way: statistics.median(times) for way, times in taken.items()}
        ratios = {way: medians[way] / medians["neither"] for way in WAYS}
        rows.append({"net": name, "width": width, "cpu_milliseconds": taken, "medians": medians, "ratios": ratios})
        print(f"{name} {width}: " + ", ".join(f"{way} {ms:.1f} ms ({ratios[way]:.2f})" for way, ms in medians.items()))
    holds = all(row["ratios"]["both"] <= (CLAIM if row["net"] == "mobilenet_v1" else 1.0) for row in rows)  # type: ignore[index]
    report = {
        "claim": f"with both, a bf16 step on a CPU takes <= {CLAIM} of the time (MobileNetV1), no more than 1 (VGG16)",
        "holds": holds,
        "rounds": options.rounds,
        "steps": options.steps,
        "rows": rows,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("the claim holds" if holds else "the claim does not hold")


if __name__ == "__main__":
    main()
