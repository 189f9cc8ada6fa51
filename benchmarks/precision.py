"""Claim: ``train.precision: auto`` chooses the faster of bf16-mixed and 32-true on the machine it runs on.

VGG16 and MobileNetV1, batch 128, 32×32 images, channels_last, SGD with Nesterov momentum, as ``auxin train`` runs them
on one CPU thread. Each figure is CPU time per step; the two precisions take turns within one process, and the ratio is
that of the medians.

Run: python benchmarks/precision.py          (about two minutes on one core; writes benchmarks/results/precision.json)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from auxin.models import build
from auxin.training.allocator import keep_freed_memory
from auxin.training.depthwise import depthwise_in_float32
from auxin.training.precision import multiplies_bf16
from auxin.training.provenance import commit, hardware, versions

NETS = (("vgg16", 16), ("vgg16", 55), ("mobilenet_v1", 32), ("mobilenet_v1", 106))


class Steps:
    """Training steps of one network in one precision."""

    def __init__(self, name: str, width: int, bf16: bool) -> None:
        self.bf16 = bf16
        self.model = build(name, width=width).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (128,))

    def __call__(self) -> float:
        """Take a step and return its CPU time in milliseconds."""
        start = time.process_time()
        with depthwise_in_float32(self.model):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits = self.model(self.images)
            self.optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()
        return (time.process_time() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="steps in each precision, in turn (default 15)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    chosen, rows = multiplies_bf16("cpu"), []
    for name, width in NETS:
        ways = {"bf16-mixed": Steps(name, width, bf16=True), "32-true": Steps(name, width, bf16=False)}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(options.rounds + 3):
            for way, step in ways.items():
                spent = step()
                if turn >= 3:
                    taken[way].append(spent)
        medians = {way: statistics.median(times) for way, times in taken.items()}
        ratio = medians["bf16-mixed"] / medians["32-true"]
        rows.append({"net": name, "width": width, "cpu_milliseconds": taken, "medians": medians, "ratio": ratio})
        print(f"{name} {width}: " + ", ".join(f"{way} {ms:.1f} ms" for way, ms in medians.items()) + f" ({ratio:.2f})")
    report = {
        "claim": "auto takes bf16-mixed where it is faster than 32-true, and 32-true elsewhere",
        "auto": "bf16-mixed" if chosen else "32-true",
        "holds": all((row["ratio"] < 1) == chosen for row in rows),  # type: ignore[operator]
        "rounds": options.rounds,
        "rows": rows,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("the claim holds" if report["holds"] else "the claim does not hold")


if __name__ == "__main__":
    main()
