import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import auxin
from auxin.errors import CheckpointError
from auxin.training.distributions import keep_distributions, read_distributions


def grown(refine: auxin.Similarity | None) -> tuple[auxin.Grower, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    grower = auxin.Grower(model, None, torch.randn(2, 4), method="net2net", budget=auxin.ratio(0.5), refine=refine)
    before = copy.deepcopy(model.state_dict())
    assert grower.grow(epoch=3) is not None
    return grower, before


def test_an_event_without_refinement_has_two_moments(tmp_path: Path) -> None:
    grower, before = grown(None)
    keep_distributions(tmp_path / "similarity.json", grower, 1, before)
    (entry,) = read_distributions(tmp_path / "similarity.json")
    assert (entry["event"], entry["epoch"], list(entry["layers"])) == (1, 3, ["0", "2"])
    stages = entry["layers"]["0"]
    assert [sum(stages["before_growth"]), sum(stages["after_growth"])] == [8 * 7 // 2, 12 * 11 // 2]
    assert stages["after_refinement"] is None


def test_only_refined_layers_have_a_third_moment(tmp_path: Path) -> None:
    grower, before = grown(auxin.Similarity(layers=("0",), lr=0.3, neurons="all"))
    keep_distributions(tmp_path / "similarity.json", grower, 1, before)
    layers = read_distributions(tmp_path / "similarity.json")[0]["layers"]
    assert layers["0"]["after_refinement"] != layers["0"]["after_growth"]
    assert layers["2"]["after_refinement"] is None


def test_a_repeated_event_replaces_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "similarity.json"
    grower, before = grown(None)
    for number in (1, 2, 3, 2):
        keep_distributions(path, grower, number, before)
    assert [entry["event"] for entry in read_distributions(path)] == [1, 2]
    path.write_text(path.read_text()[:50])
    assert read_distributions(path) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    grower, before = grown(None)
    with pytest.raises(CheckpointError, match="could not be written"):
        keep_distributions(tmp_path / "no" / "similarity.json", grower, 1, before)


def test_damaged_entries_are_left_out(tmp_path: Path) -> None:
    whole = {"event": 1, "epoch": 0, "layers": {}}
    (tmp_path / "similarity.json").write_text(json.dumps({"events": [{}, whole, 3]}))
    assert read_distributions(tmp_path / "similarity.json") == [whole]
