from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from auxin.analysis.curves import read_run
from auxin.analysis.similarity import EDGES, Distribution, of_event, of_model, table
from auxin.errors import ConfigError
from auxin.similarity import BINS, find_layers
from auxin.similarity.distribution import MOST, histogram
from auxin.similarity.layers import Layer
from auxin.training import load_model


def dense(weight: torch.Tensor) -> np.ndarray:
    rows = weight.detach().flatten(1).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    return (rows @ rows.T).numpy()[np.triu_indices(len(rows), 1)]


def test_histogram_counts_every_pair_once() -> None:
    weight = torch.randn(30, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    values = dense(weight)
    counts = np.array(histogram(Layer("0", weight)))
    assert counts.sum() == 30 * 29 // 2
    assert (counts == np.histogram(values, EDGES)[0]).all()
    share = Distribution("", counts).share_within(0.5)
    assert share == pytest.approx(np.mean((values >= -0.5) & (values < 0.5)))


def test_copies_and_opposites_fall_into_the_outer_bins_and_dead_neurons_nowhere() -> None:
    weight = torch.tensor([[3.0, 4.0], [3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]])
    counts = histogram(Layer("0", weight))
    assert (counts[0], counts[-1], sum(counts)) == (2, 1, 3)


def test_neurons_of_different_groups_are_no_pairs() -> None:
    weight = torch.ones(6, 1, 1, 1)
    assert sum(histogram(Layer("0", weight, groups=3))) == 3


def test_a_wide_layer_is_thinned_out() -> None:
    assert sum(histogram(Layer("0", torch.randn(MOST + 2, 2)))) == (MOST // 2 + 1) * (MOST // 2) // 2


def test_of_model_is_the_sum_over_layers_and_knows_their_names() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    both = of_model(model, None, "model")
    assert both.pairs == 28 + 15
    assert (both.counts == of_model(model, "0", "").counts + of_model(model, "2", "").counts).all()
    with pytest.raises(ConfigError, match=r"no layer 'features.3'.*there are: 0, 2"):
        of_model(model, "features.3", "")


def test_a_run_keeps_what_its_models_were_around_each_event(grown_run: Path) -> None:
    record = read_run(grown_run)
    assert [entry["event"] for entry in record.similarity] == [1, 2]
    for entry in record.similarity:
        before = load_model(grown_run / "ladder" / f"rung-{entry['event'] - 1:02d}.json")
        for layer in find_layers(before):
            assert entry["layers"][layer.name]["before_growth"] == histogram(layer)
        stages = {d.label: d for d in of_event(entry)}
        assert list(stages) == ["before growth", "after growth", "after refinement"]
        assert stages["after growth"].pairs == stages["after refinement"].pairs > stages["before growth"].pairs
        assert (stages["after growth"].counts != stages["after refinement"].counts).any()
    with pytest.raises(ConfigError, match="no layer 'nope'"):
        of_event(record.similarity[0], "nope")


def test_table_has_one_row_per_bin() -> None:
    counts = np.zeros(BINS)
    counts[5] = 4
    rows = table([Distribution("a", counts)])
    assert len(rows) == BINS
    assert rows[5] == {"from": -0.75, "to": -0.7, "a pairs": 4, "a share": 1.0}
