"""Claim: a firefly and a splitting event lower the loss of held-out CIFAR-10 images before any further training step.

VGG16 (width 16) and MobileNetV1 (width 32), trained for some steps, then grown by 35 % of the neurons over all
groups; the loss in eval mode on held-out images right before and right after. The claim is about the median over seeds,
for splitting by the paper's rule (asymmetry=0: with unequal shares the change has a first-order term of either sign).

Run: python benchmarks/held_loss.py --data ../shared/data/cifar10     (some minutes; writes results/held_loss.json)
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import auxin
from auxin.data import Loader, load
from auxin.methods import METHODS as METHODS_BY_NAME
from auxin.methods import Splitting
from auxin.models import build
from auxin.training.provenance import commit, hardware, versions
from auxin.types import Method

WIDTHS = {"vgg16": 16, "mobilenet_v1": 32}
METHODS: dict[str, Method] = {
    name: METHODS_BY_NAME[name] for name in ("splitting", "firefly", "gradmax", "net2net", "random")
} | {"splitting": Splitting(asymmetry=0.0)}


@torch.no_grad()
def loss_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    total = sum(float(nn.functional.cross_entropy(model(x), y, reduction="sum")) for x, y in batches)
    return total / sum(len(y) for _, y in batches)


def trained(name: str, loader: Loader, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build(name, width=WIDTHS[name]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    done = 0
    while done < steps:
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder or a hub name")
    parser.add_argument("--steps", type=int, default=700, help="training steps before the event (default 700)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "held_loss.json")
    options = parser.parse_args()
    data = load(options.data)
    rows = []
    for name in WIDTHS:
        changes: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for seed in range(options.seeds):
            loader = Loader(data, "train", batch_size=128, seed=seed)
            base = trained(name, loader, options.steps, seed)
            held = [b for _, b in zip(range(8), Loader(data, "val", batch_size=256), strict=False)]
            before = loss_of(base, held)
            for method, way in METHODS.items():
                model = copy.deepcopy(base).train()
                budget = auxin.ratio(0.35, scope="global")
                grower = auxin.Grower(model, None, held[0][0][:2], method=way, budget=budget, seed=seed)
                event = grower.grow(loader=loader, loss_fn=nn.functional.cross_entropy)
                change = loss_of(model, held) - before
                changes[method].append({"before": before, "change": change})
                print(f"{name} seed {seed} {method}: {before:.4f} {change:+.2e}  {event.notes[:1] if event else ''}")
        for method, found in changes.items():
            median = statistics.median(row["change"] for row in found)
            wins = method in ("splitting", "firefly")
            rows.append({"model": name, "method": method, "median_change": median, "seeds": found,
                         "holds": not wins or median < 0})  # fmt: skip
            print(f"{name} {method}: median {median:+.3e}")
    report = {"claim": __doc__.split("\n")[0], "rows": rows, "steps": options.steps, "date": time.strftime("%Y-%m-%d"),
              **commit(), "hardware": hardware(), "versions": versions()}  # fmt: skip
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
