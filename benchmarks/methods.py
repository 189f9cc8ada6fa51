"""Claim: one growth event costs at most 0.05 (gradmax), 0.3 (splitting) and 0.5 (firefly) training epochs.

VGG16 of width 22 on 32×32 colour images, batch 128, fp32, SGD with momentum; an epoch is 45,000 images: 352 steps. The
step time is measured in the same run, right before each event; the figure is the median over rounds of (seconds of the
event, surgery and verification included) / (352 × seconds of a step). Every group grows by 35 %. Seconds are measured
twice, by the clock and as CPU time of the process, which other work on the machine disturbs less; a claim holds only if
both ratios do.

Run: python benchmarks/methods.py            (some minutes on 2 cores; writes benchmarks/results/methods.json)
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import auxin
from auxin.methods import METHODS
from auxin.models import build
from auxin.training.provenance import commit, hardware, versions

BATCH = 128
WIDTH = 22
STEPS_PER_EPOCH = -(-45_000 // BATCH)
CLAIMS = {"gradmax": 0.05, "splitting": 0.3, "firefly": 0.5}


def now() -> tuple[float, float]:
    """Return the clock and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def one_round(method: str, model_name: str, seed: int) -> dict[str, float]:
    """Return the seconds of a training step and of the event."""
    torch.manual_seed(seed)
    model = build(model_name, width=WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))) for _ in range(8)]
    grower = auxin.Grower(model, optimizer, batches[0][0][:2], method=method, budget=auxin.ratio(0.35), seed=seed)

    def seconds(work: Callable[[], object]) -> tuple[float, float]:
        start = now()
        work()
        end = now()
        return end[0] - start[0], end[1] - start[1]

    def step(index: int) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batches[index % 8][0]), batches[index % 8][1]).backward()
        optimizer.step()

    times = [seconds(lambda index=index: step(index)) for index in range(12)][2:]
    event = seconds(lambda: grower.grow(loader=batches, loss_fn=nn.functional.cross_entropy))
    return {
        "seconds_per_step": statistics.median(clock for clock, _ in times),
        "seconds_of_event": event[0],
        "cpu_seconds_per_step": statistics.median(cpu for _, cpu in times),
        "cpu_seconds_of_event": event[1],
    }


def epochs(rounds: list[dict[str, float]], kind: str) -> float:
    """Return the median cost of an event in training epochs."""
    return statistics.median(
        r[f"{kind}seconds_of_event"] / (r[f"{kind}seconds_per_step"] * STEPS_PER_EPOCH) for r in rounds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each method (default 3)")
    parser.add_argument("--models", nargs="+", default=["vgg16", "mobilenet_v1"], help="models of auxin.models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods.json")
    options = parser.parse_args()
    rows = []
    for model_name in options.models:
        for method in METHODS:
            rounds = [one_round(method, model_name, seed) for seed in range(options.rounds)]
            clock, cpu = epochs(rounds, ""), epochs(rounds, "cpu_")
            row = {
                "model": model_name,
                "method": method,
                "epochs": clock,
                "steps": clock * STEPS_PER_EPOCH,
                "cpu_epochs": cpu,
                "claim": CLAIMS.get(method),
                "holds": method not in CLAIMS or max(clock, cpu) <= CLAIMS[method],
                "rounds": rounds,
            }
            rows.append(row)
            print(
                f"{model_name} {method}: {clock:.4f} epochs ({row['steps']:.1f} steps), {cpu:.4f} by CPU time",
                flush=True,
            )
    report = {
        "claim": __doc__.split("\n")[0],
        "rows": rows,
        "width": WIDTH,
        "batch": BATCH,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
