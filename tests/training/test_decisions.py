import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from auxin.data import ImageData
from auxin.training import Result, Trainer
from auxin.training.decisions import sentence
from tests.training.test_trainer import make_config


@dataclass
class Decided:
    epoch: int
    reason: str
    winner: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def test_each_decision_of_the_grower_is_told_and_kept(tmp_path: Path, digits: ImageData) -> None:
    text = io.StringIO()
    trainer = Trainer(make_config(train={"epochs": 3}), tmp_path, data=digits, console=Console(file=text))
    grower: Any = trainer.grower
    grower.decisions, step = [], grower.step

    def decide(epoch: int, *rest: Any) -> Any:
        event = step(epoch, *rest)
        grower.decisions.append(Decided(epoch, f"reason {epoch}", "features.0" if event else None))
        return event

    grower.step = decide
    trainer.fit()
    assert "after epoch 1: no growth, reason 0\n" in text.getvalue()
    assert "after epoch 2: growth, reason 1\n" in text.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert Result.read(tmp_path / "result.json").decisions == lines


def test_a_decision_is_one_sentence() -> None:
    assert sentence({"epoch": 4, "reason": "r", "winner": "a"}) == "after epoch 5: growth, r"
    assert sentence({"epoch": None, "reason": "r", "winner": None}) == "no growth, r"
