"""When to grow."""

import pytest

import auxin
from auxin.errors import ConfigError


def fired(trigger, values, key="val_loss"):
    return [epoch for epoch, value in enumerate(values) if trigger(epoch, {key: value})]


def test_every_counts_from_its_start_and_stops_after_its_times():
    assert fired(auxin.every(3), range(10)) == [2, 5, 8]
    assert fired(auxin.every(3, start=1, times=2), range(10)) == [0, 3]


def test_every_gives_its_reason():
    assert auxin.every(50, times=4)(99, {}) == "every 50 epochs, event 2 of 4"


def test_plateau_waits_for_patience_without_improvement():
    assert fired(auxin.plateau(patience=2), [5, 4, 4, 4, 3, 3, 3]) == [3, 6]


def test_plateau_ignores_gains_below_min_delta():
    assert fired(auxin.plateau(patience=2, min_delta=0.5), [5, 4.9, 4.8, 4.0]) == [2]


def test_plateau_for_a_metric_that_should_rise():
    assert fired(auxin.plateau("val_accuracy", 2, mode="max"), [0.1, 0.5, 0.5, 0.4], "val_accuracy") == [3]


def test_plateau_rests_after_an_event_and_stops_after_its_times():
    assert fired(auxin.plateau(patience=1, cooldown=2), [1] * 8) == [1, 4, 7]
    assert fired(auxin.plateau(patience=1, times=1), [1] * 5) == [1]


def test_plateau_resumes_where_it_was():
    one, two = auxin.plateau(patience=3), auxin.plateau(patience=3)
    values = [5, 4, 4, 4, 4, 4, 4, 4]
    for epoch in range(4):
        one(epoch, {"val_loss": values[epoch]})
    two.load_state_dict(one.state_dict())
    assert [bool(one(e, {"val_loss": values[e]})) for e in range(4, 8)] == [
        bool(two(e, {"val_loss": values[e]})) for e in range(4, 8)
    ]


def test_plateau_says_which_metrics_there_are():
    with pytest.raises(ConfigError, match="train_loss"):
        auxin.plateau()(0, {"train_loss": 1.0})


@pytest.mark.parametrize("make", [lambda: auxin.every(0), lambda: auxin.plateau(mode="up")])
def test_senseless_triggers_are_refused(make):
    with pytest.raises(ConfigError):
        make()
