"""The recipes for other people's trainers run as docs/trainers.md has them: a resumed run ends at the same weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import auxin

DOCS = Path(__file__).parents[1] / "docs"


def recipe(about: str) -> dict[str, Any]:
    """Return the names that a recipe defines."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "trainers.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if about in block]
    names: dict[str, Any] = {}
    exec(compile(code, "docs/trainers.md", "exec"), names)
    return names


def require_equal(one: nn.Module, two: nn.Module) -> None:
    assert list(one.state_dict()) == list(two.state_dict())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    names = recipe("pl.Callback")
    steps = [{"after": 1, "deepen": {"net.1": 1}}, {"after": 3, "deepen": {"net.3": 1}, "widen": {"net.0": 12}}]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=draw)
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())

    class Net(names["Net"]):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
            self.net, self.example_input_array = nn.Sequential(*layers), x[:2]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def fit(checkpoint: Path | None = None) -> nn.Module:
        net = Net()
        keep = [
            pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}"),
            pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{step}", every_n_train_steps=3),
        ]
        trainer = pl.Trainer(
            max_epochs=4, callbacks=[names["Growth"](trigger=auxin.planned(steps)), *keep], logger=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(net, torch.utils.data.DataLoader(data, 32), ckpt_path=checkpoint)
        return net

    whole = fit()
    assert sum(".grown." in name for name in whole.state_dict()) == 4
    for checkpoint in ("epoch=1.ckpt", "step=3.ckpt", "step=9.ckpt"):  # the last two are written before growth
        require_equal(fit(tmp_path / checkpoint), whole)
    whole.on_load_checkpoint(torch.load(tmp_path / "epoch=3.ckpt", weights_only=True))  # nothing is left to replay


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    names = recipe("TrainerCallback")
    steps = [
        {"after": 1, "deepen": {"model.layers.1": 1}},
        {"after": 2, "deepen": {"model.layers.0": 1}, "widen": {"model.layers.0.mlp.gate_proj": 27}},
    ]
    draw = torch.Generator().manual_seed(0)
    rows = [(torch.randint(0, 32, (1,), generator=draw) + 5 * torch.arange(6)) % 32 for _ in range(32)]
    data, example = [{"input_ids": row, "labels": row} for row in rows], {"input_ids": torch.stack(rows[:2])}

    def make() -> nn.Module:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=24, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    def trainer(folder: str, resume_from: Path | None = None) -> Any:
        arguments = transformers.TrainingArguments(
            str(tmp_path / folder), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=3e-3,
            save_strategy="steps", save_steps=1, report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        callback = names["Growth"](example, resume_from, trigger=auxin.planned(steps))
        return transformers.Trainer(make(), arguments, train_dataset=data, callbacks=[callback])

    whole = trainer("whole")
    whole.train()
    assert whole.model.config.num_hidden_layers == 4
    for step in (2, 3, 4):  # two steps an epoch, whose last is saved before the model grows
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = trainer(f"resumed-{step}", checkpoint)
        names["resume"](resumed, checkpoint)
        require_equal(resumed.model, whole.model)
