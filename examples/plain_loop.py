"""Grow a network of your own in a plain training loop: four lines of auxin in an ordinary script.

Run: python examples/plain_loop.py        (needs the app extra for the digits; about ten seconds)
"""

import torch
from torch import nn

import auxin
from auxin.data import Loader, load


def main(epochs: int = 12) -> float:
    torch.manual_seed(0)
    data = load("digits")
    train, val = Loader(data, "train", batch_size=64), Loader(data, "val", batch_size=512)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    example = torch.randn(2, 1, 8, 8)
    print(auxin.trace(model, example))  # what can grow, and why the rest cannot
    grower = auxin.Grower(model, optimizer, example, trigger=auxin.every(3, times=3), budget=auxin.ratio(0.5))

    accuracy = 0.0
    for epoch in range(epochs):
        train.set_epoch(epoch)
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = [(model(images).argmax(1) == labels).float().mean() for images, labels in val]
        accuracy = float(torch.stack(hits).mean())
        print(f"epoch {epoch + 1}: validation accuracy {accuracy:.1%}")
        if event := grower.step(epoch):
            print(event)
    return accuracy


if __name__ == "__main__":
    main()
