"""Claim: in bfloat16 a VGG16 of widths that are multiples of 16 does more FLOPs a second than a slightly narrower one.

What `multiple_of` is for. VGG16 of the four sizes that 35 % growth from 16 gives (22, 30, 41, 55) and of the multiples
of 8 and 16 beside them, on the CPU: forward, loss, backward, SGD with Nesterov momentum, channels_last, in bf16
autocast and in float32. All widths take turns in every round. FLOPs of a step are three times those of the forward.
Whether the wider net also takes less time is in the file, as a ratio of seconds, and not claimed: it changes from run
to run.

Run: python benchmarks/widths.py              (about three minutes on one core; writes benchmarks/results/widths.json)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import auxin
from auxin.models import vgg16
from auxin.training.provenance import commit, hardware, versions

BATCH, WIDTHS = 128, (16, 22, 24, 30, 32, 40, 41, 48, 55, 56, 64)
PAIRS, RATE = ((30, 32), (41, 48), (55, 64)), "gflop_per_second"


def trainer(width: int, bf16: bool) -> tuple[Callable[[], None], int]:
    """Return a training step of one net, and its FLOPs."""
    torch.manual_seed(0)
    model = vgg16(width=width).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step, 3 * BATCH * auxin.trace(model, images[:1]).flops()


def measure(bf16: bool, rounds: int) -> list[dict[str, Any]]:
    """Return the seconds of a step of every width, in turns."""
    steps = {width: trainer(width, bf16) for width in WIDTHS}
    times: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for index in range(rounds + 1):  # the first round warms caches and kernels
        for width, (step, _) in steps.items():
            start = time.perf_counter()
            step()
            times[width] += [time.perf_counter() - start] if index else []
    medians = {width: statistics.median(values) for width, values in times.items()}
    return [
        {
            "width": width,
            "seconds": medians[width],
            RATE: steps[width][1] / medians[width] / 1e9,
            "all_seconds": times[width],
        }
        for width in WIDTHS
    ]


def compared(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return the ratio of wider to narrower for each pair of widths."""
    of = {row["width"]: row[key] for row in rows}
    return {f"{b} by {a}": of[b] / of[a] for a, b in PAIRS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="rounds of every width in turn (default 25)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "widths.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = {name: measure(name == "bf16", options.rounds) for name in ("bf16", "float32")}
    ratios = {key: {name: compared(found, key) for name, found in rows.items()} for key in ("seconds", RATE)}
    report = {
        "claim": "in bf16 a VGG16 of width 32, 48 or 64 does more FLOPs a second than one of 30, 41 or 55",
        "holds": min(ratios[RATE]["bf16"].values()) > 1,
        "ratios": ratios,
        "rows": rows,
        "rounds": options.rounds,
        "threads": options.threads,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, found in rows.items():
        for row in found:
            print(f"{name:7}  width {row['width']:2}  {row['seconds']:6.3f} s  {row[RATE]:6.1f} GFLOP/s")


if __name__ == "__main__":
    main()
