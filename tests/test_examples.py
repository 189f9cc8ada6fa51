"""The examples run and do what they say."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_plain_loop(capsys):
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]
    assert main(epochs=4) > 0.5
    assert "random: 0 4→6" in capsys.readouterr().out


def test_transformer_heads(capsys):
    change = runpy.run_path(str(EXAMPLES / "transformer_heads.py"))["main"]()
    assert change < 1e-5
    assert "heads: [5, 5]" in capsys.readouterr().out
