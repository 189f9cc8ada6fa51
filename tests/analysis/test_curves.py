import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from auxin.analysis.curves import pareto, read_run
from auxin.errors import ConfigError
from auxin.training import load_model, rungs


def test_pareto_front_equals_its_definition_point_by_point() -> None:
    generator = np.random.default_rng(0)
    costs, scores = generator.integers(0, 6, 40), generator.integers(0, 6, 40)
    for index, mine in enumerate(pareto(costs, scores)):
        beaten = any(
            c <= costs[index] and s >= scores[index] and (c < costs[index] or s > scores[index])
            for c, s in zip(costs, scores, strict=True)
        )
        assert mine == (not beaten)


def test_widths_of_layers_are_those_of_the_models_of_the_ladder(grown_run: Path) -> None:
    record = read_run(grown_run)
    for phase, rung in enumerate(rungs(grown_run / "ladder")):
        weights = {n: p for n, p in load_model(rung.path).named_parameters() if p.ndim > 1}
        assert {f"{layer.name}.weight": layer.widths[phase] for layer in record.layers} == {
            name: len(weight) for name, weight in weights.items()
        }
    assert [layer.name for layer in record.layers] == ["features.0", "features.4", "features.7", "classifier"]


def test_a_run_that_goes_on_reads_as_the_same_run_finished(grown_run: Path, tmp_path: Path) -> None:
    live = shutil.copytree(grown_run, tmp_path / "live")
    (live / "result.json").unlink()
    going, done = read_run(live), read_run(grown_run)
    assert not going.finished and done.finished
    assert going.layers == done.layers
    assert len(going.events) == len(done.events) == 2
    for mine, theirs in zip(going.phases, done.phases, strict=True):
        for name in ("first_epoch", "last_epoch", "parameters", "flops", "val_accuracy"):
            assert mine[name] == theirs[name]
        assert mine["test_accuracy"] is None


def test_events_inherited_from_another_run_are_not_this_runs(grown_run: Path, tmp_path: Path) -> None:
    live = shutil.copytree(grown_run, tmp_path / "live")
    (live / "result.json").unlink()
    last = live / "checkpoints/last.json"
    document = json.loads(last.read_text())
    document["run"] = {"inherited": 1}
    last.write_text(json.dumps(document))
    assert len(read_run(live).events) == 1


def test_without_checkpoints_the_widths_of_what_grew_are_left(grown_run: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(grown_run, tmp_path / "bare", ignore=shutil.ignore_patterns("ladder", "checkpoints"))
    assert {layer.name: layer.widths for layer in read_run(bare).layers} == {
        name: tuple(sizes) for name, sizes in json.loads((bare / "result.json").read_text())["widths"].items()
    }


def test_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("train: {epochs: 3}\n")
    with pytest.raises(ConfigError, match="no finished epoch"):
        read_run(tmp_path)
