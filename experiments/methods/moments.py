"""What Adam's second moments of new entries should start with: zero, the mean of the old ones, or all state anew.

An MLP on scikit-learn's handwritten digits grows from two layers of 8 units by 50 % after epochs 8, 16, 24 and 32.
Adam counts one step for a whole tensor, so moments that start at zero late are not corrected for it, and the first
updates of new entries are 3 to 6 times the learning rate.

Run: python experiments/methods/moments.py          (four minutes on one core; writes experiments/methods/moments.json)
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn

import auxin
from auxin.training.provenance import commit, hardware, versions

METHODS, RATES, STARTS, SEEDS = ("random", "net2net", "gradmax"), (1e-3, 1e-2), ("zero", "mean", "anew"), 12


def accuracy(method: str, rate: float, start: str, seed: int) -> float:
    """Return the accuracy on 597 test images, in percent, after 40 epochs with four events."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    training, test = order[:1200], order[1200:]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    optimizer, loss_fn = torch.optim.Adam(model.parameters(), lr=rate), nn.CrossEntropyLoss()
    grower = auxin.Grower(
        model, optimizer, images[:2], method=method, trigger=auxin.every(8, times=4), budget=auxin.ratio(0.5),
        seed=seed, carry_state=start != "anew",
    )  # fmt: skip
    sample = training[:200]
    for epoch in range(40):
        for batch in training[torch.randperm(len(training), generator=generator)].split(50):
            optimizer.zero_grad()
            loss_fn(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        before = {p: p.shape for p in model.parameters()}
        if grower.step(epoch, [(images[sample], labels[sample])], loss_fn) and start == "mean":
            for parameter, shape in before.items():
                moment = optimizer.state[parameter]["exp_avg_sq"]
                old = torch.zeros_like(moment, dtype=torch.bool)
                old[tuple(slice(n) for n in shape)] = True
                moment[~old] = moment[old].mean()
    with torch.no_grad():
        return float((model(images[test]).argmax(1) == labels[test]).float().mean()) * 100


def main() -> None:
    """Run everything, write the result and print it as a table."""
    torch.set_num_threads(1)
    settings = [(method, rate, start) for method in METHODS for rate in RATES for start in STARTS]
    rows = []
    for method, rate, start in track(settings, description="moments"):
        found = [accuracy(method, rate, start, seed) for seed in range(SEEDS)]
        rows.append({"method": method, "rate": rate, "start": start, "test": [round(value, 2) for value in found]})
    result = {"rows": rows, "commit": commit(), "hardware": hardware(), "versions": versions()}
    (Path(__file__).parent / "moments.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        mean, error = statistics.mean(row["test"]), statistics.stdev(row["test"]) / SEEDS**0.5
        print(f"| {row['method']} | {row['rate']} | {row['start']} | {mean:.2f} ± {error:.2f} |")


if __name__ == "__main__":
    main()
