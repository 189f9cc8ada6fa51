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


def test_transformer(capsys):
    change = runpy.run_path(str(EXAMPLES / "transformer.py"))["main"]()
    assert change < 1e-5
    assert "heads of each layer: [5, 5, 5, 5]" in capsys.readouterr().out


def test_language_model(capsys):
    pytest.importorskip("transformers")
    before, after = runpy.run_path(str(EXAMPLES / "language_model.py"))["main"]()
    assert after < before - 1
    assert "4 layers, steps of 5, new layers trained" in capsys.readouterr().out
