"""Claim: 30 iterations of the similarity refinement cost at most 2 % of a training epoch.

VGG16 of width 16 and of width 55, all thirteen convolutions, on the CPU. The epoch is the one of CIFAR-10 with 45,000
training images in batches of 128: 351 times the median of a measured training step (forward, loss, backward, SGD with
Nesterov momentum, bf16 autocast, channels_last). The refinement is everything that ``auxin.similarity.refine`` does:
finding the layers, measuring before and after, 30 iterations, writing back, and the two forwards of the example that
measure how far the output moved. Re-estimating batch norms on 20 batches is an option of its own, measured beside it.

Run: python benchmarks/similarity.py         (about two minutes on one core; writes benchmarks/results/similarity.json)
"""

from __future__ import annotations

import argparse
import copy
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
from auxin.similarity import reestimate_norms
from auxin.training.provenance import commit, hardware, versions

IMAGES, BATCH, ITERATIONS, NORM_BATCHES, CLAIM = 45_000, 128, 30, 20, 0.02


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(width: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of steps and refinements of one model, in turns."""
    torch.manual_seed(0)
    model = vgg16(width=width).to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    graph = auxin.trace(model, images[:2])

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    start = copy.deepcopy(model.state_dict())
    kinds = {
        "proposed1": auxin.Similarity(iterations=ITERATIONS, neurons="all"),
        "both": auxin.Similarity(iterations=ITERATIONS, neurons="all", weight_change=0.1),
    }
    times: dict[str, list[float]] = {name: [] for name in ("step", *kinds, "norms")}
    for index in range(rounds + 1):  # the first round warms caches and kernels
        model.train()
        seconds = {"step": statistics.median(timed(step) for _ in range(steps))}
        for name, how in kinds.items():
            model.load_state_dict(start)
            seconds[name] = timed(lambda how=how: how.refine(model, graph=graph))
        seconds["norms"] = timed(lambda: reestimate_norms(model, [images] * NORM_BATCHES, NORM_BATCHES))
        for name, value in seconds.items():
            times[name] += [value] if index else []
    medians = {name: statistics.median(values) for name, values in times.items()}
    epoch = medians["step"] * (IMAGES // BATCH)
    return {
        "width": width,
        "epoch_seconds": epoch,
        "median_seconds": medians,
        "share_of_an_epoch": {name: medians[name] / epoch for name in (*kinds, "norms")},
        "seconds": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of everything in turn (default 7)")
    parser.add_argument("--steps", type=int, default=7, help="training steps a round (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "similarity.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = [measure(width, options.steps, options.rounds) for width in (16, 55)]
    worst = max(model["share_of_an_epoch"][name] for model in models for name in ("proposed1", "both"))
    report = {
        "claim": f"{ITERATIONS} iterations on all layers of VGG16 cost at most {CLAIM:.0%} of a training epoch",
        "holds": worst <= CLAIM,
        "worst_share": worst,
        "models": models,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for model in models:
        shares = ", ".join(f"{name} {share:.2%}" for name, share in model["share_of_an_epoch"].items())
        print(f"width {model['width']}: epoch {model['epoch_seconds']:.1f} s; {shares} of it")


if __name__ == "__main__":
    main()
