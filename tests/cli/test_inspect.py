from pathlib import Path

import pytest
import torch
from torch import nn

from auxin.cli import inspect, main
from auxin.cli.inspect import example_input
from auxin.errors import GrowthError
from auxin.graph import Graph
from auxin.types import Event

TWO_INPUTS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.outer = torch.nn.Embedding(2, 6), torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)

    def forward(self, ids, scale):
        return self.outer(torch.relu(self.inner(self.table(ids)))) * scale
"""


def test_the_graph_of_a_model_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "small_cnn", "--input", "1,1,8,8", "--check"]) == 0
    text = capsys.readouterr().out
    assert "features.0" in text
    assert "3 of 3 grow." in text


def test_a_users_own_model_with_two_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inspected_net.py").write_text(TWO_INPUTS)
    words = ["inspect", "inspected_net:Net", "--input", "1,4:int64", "--input", "1", "--check"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "inner" in text
    assert "FAILS" not in text


def test_a_group_that_does_not_grow_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resist(model: nn.Module, graph: Graph, name: str, **options: bool) -> Event:
        if name == "features.4":
            raise GrowthError("a hard-coded view resists.")
        return original(model, graph, name, **options)

    original = inspect.try_group
    monkeypatch.setattr(inspect, "try_group", resist)
    assert main(["inspect", "small_cnn", "--input", "1,1,8,8", "--check"]) == 1
    text = capsys.readouterr().out
    assert "FAILS  a hard-coded view resists." in text
    assert "2 of 3 grow." in text


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("1,3,32,32", (1, 3, 32, 32), torch.float32),
        ("2,5:int64", (2, 5), torch.int64),
        ("7:bool", (7,), torch.bool),
        ("1,2:bfloat16", (1, 2), torch.bfloat16),
    ],
)
def test_example_inputs(text: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = example_input(text)
    assert value.shape == shape
    assert value.dtype == dtype
