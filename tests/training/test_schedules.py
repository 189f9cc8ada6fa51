import math

import pytest

from auxin.training.config import ScheduleConfig
from auxin.training.schedules import constant, cosine, make_schedule, step, warmup


def test_cosine_follows_its_formula_and_stays_at_its_floor() -> None:
    schedule = cosine(10, floor=0.1)
    for t in (0, 2.5, 7, 10):
        assert schedule(t) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 10)))
    assert schedule(12) == pytest.approx(0.1)


def test_step_drops_at_each_milestone_in_any_order() -> None:
    schedule = step([6, 3], gamma=0.1)
    assert [schedule(t) for t in (0, 2.99, 3, 5.9, 6, 100)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_rises_to_the_start_of_what_follows() -> None:
    schedule = warmup(cosine(8), 2)
    assert [schedule(t) for t in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert warmup(constant(), 0)(0) == 1


def test_keep_ignores_growth_and_restart_begins_again() -> None:
    keep = make_schedule(ScheduleConfig(name="cosine"), 20, growth_epoch=10)
    assert [keep(t) for t in (0, 10, 20)] == pytest.approx([1, 0.5, 0])
    restart = make_schedule(ScheduleConfig(name="cosine", warmup=1, after_growth="restart"), 20, growth_epoch=10)
    assert [restart(t) for t in (10, 10.5, 11, 15.5, 20)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_milestones_count_from_the_start_of_the_run() -> None:
    schedule = make_schedule(ScheduleConfig(name="step", milestones=[5], gamma=0.5, warmup=2), 10)
    assert [schedule(t) for t in (1, 2, 4.99, 5)] == pytest.approx([0.5, 1, 1, 0.5])


def test_a_warmup_longer_than_the_run_still_gives_a_rate() -> None:
    schedule = make_schedule(ScheduleConfig(warmup=5), 3)
    assert [schedule(t) for t in (0, 2.5)] == pytest.approx([0, 0.5])


def test_the_trapezoid_stays_up_and_falls_straight():
    schedule = make_schedule(ScheduleConfig(name="trapezoid", warmup=2, decay=0.25, floor=0.1), 10)
    assert [round(schedule(t), 6) for t in (0, 1, 2, 8, 9, 10)] == [0, 0.5, 1, 1, 0.55, 0.1]
    again = make_schedule(ScheduleConfig(name="trapezoid", after_growth="restart"), 20, growth_epoch=12)
    assert [again(t) for t in (12, 16, 18, 20)] == [1, 1, 0.5, 0]
