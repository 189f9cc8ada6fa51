from collections.abc import Callable
from pathlib import Path

import pytest

from auxin.cli import main
from auxin.compare import estimate as estimates
from auxin.compare import make_plan, read_spec
from auxin.compare.estimate import epoch_costs, estimate, event_epochs, probe
from auxin.training import RunConfig
from tests.compare.conftest import make_result

Write = Callable[..., Path]


def test_costs_follow_the_growth_of_the_configuration() -> None:
    def config(epochs: int, **growth: object) -> RunConfig:
        return RunConfig.from_dict({"train": {"epochs": epochs}, "growth": growth})

    assert epoch_costs(config(5, every=2, ratio=0.5)) == [1, 1, 2.25, 2.25, 2.25**2]
    assert epoch_costs(config(4, every=1, times=1, ratio=0.5, of="parameters")) == [1, 1.5, 1.5, 1.5]
    assert epoch_costs(config(3, method=None)) == [1, 1, 1]
    plan = [{"after": 2, "deepen": {"features.2": 2}}, {"after": 1, "widen": {r"features\..*": 24}}]
    planned = RunConfig.from_dict({"train": {"epochs": 4}, "growth": {"trigger": "planned", "plan": plan}})
    costs = epoch_costs(planned)
    assert costs[0] == 1 < costs[1] < costs[2] == costs[3]
    assert event_epochs(config(9, every=4, start=2, times=None)) == [2, 6]
    assert event_epochs(config(9, trigger="plateau", times=2)) == [3, 6]


def test_finished_runs_of_the_row_come_first_then_those_of_another_by_flops(write: Write, tmp_path: Path) -> None:
    grid = {"train.epochs": [2, 4]}
    plan = make_plan(read_spec(write(rows=[{"label": "A"}], grid=grid, seeds=3)), tmp_path)
    for run, seconds in ((plan[0], 10.0), (plan[2], 20.0)):
        run.folder.path.mkdir(parents=True)
        make_result(run.config, seconds=seconds).save(run.folder.result)
    found = estimate(plan, plan, threads=1)
    assert set(found) == {"a-epochs-2-s2", "a-epochs-4-s0", "a-epochs-4-s1", "a-epochs-4-s2"}
    assert (found["a-epochs-2-s2"].seconds, found["a-epochs-2-s2"].basis) == (15.0, "finished runs of the row: 2")
    # Growth after each epoch by 0.5: 1 + 2.25 of the reference, which took 10 s; 1 + 2.25 + 2.25² + 2.25³ here.
    assert found["a-epochs-4-s0"].seconds == pytest.approx(10 * 19.703125 / 3.25)
    assert found["a-epochs-4-s0"].basis == '"A, epochs=2" x FLOPs'


def test_a_begun_run_has_its_rest_left_by_its_own_epochs(write: Write, tmp_path: Path) -> None:
    plan = make_plan(read_spec(write(rows=[{"label": "A"}], seeds=2)), tmp_path)
    plan[0].folder.path.mkdir(parents=True)
    make_result(plan[0].config, seconds=13.0).save(plan[0].folder.result)
    plan[1].folder.last.parent.mkdir(parents=True)
    plan[1].folder.last.touch()
    assert estimate(plan[1:], plan, threads=1)["a-s1"].seconds == 13.0  # stopped before its first epoch was logged
    plan[1].folder.metrics.write_text('{"epoch": 0, "epoch_seconds": 8.0}\n')
    found = estimate(plan[1:], plan, threads=1)["a-s1"]
    assert (found.seconds, found.basis) == (8 * 2.25, "its epochs so far: 1")


def test_the_probe_trains_little_and_scales_up(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = read_spec(write(grid={"train.epochs": [2, 40]}, rows=None))
    short, long = (row.config for row in spec.rows)
    assert 0 < probe(short, threads=1) < 60
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(estimates, "probe", lambda config, threads: 7.0)
    plan = make_plan(spec, tmp_path / "runs")
    found = estimate(plan, plan, threads=1)
    assert found["epochs-2-s0"].seconds == 7.0
    assert found["epochs-2-s0"].basis == "a short probe"
    assert long.train.epochs == 40
    assert found["epochs-40-s0"].basis == "a short probe x FLOPs"


def test_a_dry_run_shows_the_plan_and_trains_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimates, "probe", lambda config, threads: 90.0)
    assert main(["compare", str(write()), "--dry-run", "--jobs", "2", "--cores", "4"]) == 0
    text = capsys.readouterr().out
    assert "random-s0   missing  1 min 30 s  a short probe" in text
    assert "the others take about 1 min 30 s with --jobs 2 (2 threads each)." in text
    assert not (tmp_path / "runs").exists()
    probed: list[int] = []
    monkeypatch.setattr(estimates, "probe", lambda config, threads: probed.append(threads) or 90.0)
    rows = [{"label": "One", "config": {"train.threads": 1}}]
    assert main(["compare", str(write(rows=rows)), "--dry-run", "--cores", "4"]) == 0
    assert probed == [1] and "with --jobs 1 (1 thread each)." in capsys.readouterr().out
    path = write(base={"data.source": "./nowhere"})
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(path), "--dry-run"]) == 0
    assert "at least 0 s" in capsys.readouterr().out


MISTAKES = {
    "no specification": (["nowhere.yaml"], "nowhere.yaml could not be read"),
    "none named": ([], "SPEC"),
    "more jobs than cores": (["methods.yaml", "--jobs", "3", "--cores", "2"], "--jobs 3 is more than the 2 cores"),
    "no jobs": (["methods.yaml", "--jobs", "0"], "no whole number above 0"),
    "no such row": (["methods.yaml", "--only", "x"], '--only x means no row: choose among "Random", "Net2Net".'),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_sentence(
    name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write()
    words, expected = MISTAKES[name]
    assert main(["compare", *words]) == 2
    errors = capsys.readouterr().err
    assert expected in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()
