from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from auxin.compare import choose, make_plan, once, read_spec
from auxin.compare.plan import check, first_difference
from auxin.errors import ConfigError
from auxin.training import RunConfig
from tests.compare.conftest import make_result

Write = Callable[..., Path]


def test_one_run_per_row_and_seed_whole_tables_first(write: Write, tmp_path: Path) -> None:
    plan = make_plan(read_spec(write(seeds=2)), tmp_path / "runs", tmp_path / "results")
    assert [run.name for run in plan] == ["random-s0", "net2net-s0", "random-s1", "net2net-s1"]
    assert [run.config.train.seed for run in plan] == [0, 0, 1, 1]
    assert plan[1].folder.path == tmp_path / "runs" / "methods" / "net2net-s0"
    assert plan[1].kept == tmp_path / "results" / "methods" / "net2net-s0.json"
    assert {run.state for run in plan} == {"missing"}


def test_two_tables_share_runs_of_one_configuration(write: Write, tmp_path: Path) -> None:
    recipes = {"short": {"train.epochs": 3}}
    first = make_plan(read_spec(write(recipes=recipes)), tmp_path / "runs", tmp_path / "results")
    rows = [{"label": "Copies", "config": {"growth.method": "net2net"}, "same_as": "methods/Net2Net"}]
    other = write("other.yaml", name="other", rows=rows, recipes=recipes)
    (run,) = make_plan(read_spec(other), tmp_path / "runs", tmp_path / "results")
    assert (run.name, run.folder.path, run.kept) == (first[1].name, first[1].folder.path, first[1].kept)
    assert run.kept == tmp_path / "results" / "methods-short" / "net2net-s0.json"
    run.folder.path.mkdir(parents=True)
    make_result(first[1].config).save(run.folder.result)
    assert make_plan(read_spec(other), tmp_path / "runs")[0].state == "done"
    rows[0]["config"] = {"growth.method": "random"}
    with pytest.raises(ConfigError, match=r"growth\.method is"):
        make_plan(read_spec(write("other.yaml", name="other", rows=rows, recipes=recipes)), tmp_path / "runs")


def test_rows_that_are_one_run_by_intent_are_trained_once(write: Write, tmp_path: Path) -> None:
    settings = {"growth.method": "net2net"}
    rows = [{"label": label, "config": settings, "same_as": "methods/Net2Net"} for label in ("Copies", "Copies again")]
    plan = make_plan(read_spec(write("other.yaml", name="other", rows=rows, seeds=2)), tmp_path / "runs")
    assert [run.row.label for run in plan] == ["Copies", "Copies again"] * 2
    assert [(run.row.label, run.seed) for run in once(plan)] == [("Copies", 0), ("Copies", 1)]
    rows[1].pop("same_as")
    with pytest.raises(ConfigError, match='"Copies" and "Copies again" are one and the same run'):
        read_spec(write("other.yaml", name="other", rows=rows))


def test_done_begun_and_missing(write: Write, tmp_path: Path) -> None:
    plan = make_plan(read_spec(write(seeds=2)), tmp_path / "runs", tmp_path / "results")
    for run in plan[:2]:
        run.folder.last.parent.mkdir(parents=True)
        run.folder.last.touch()
    make_result(plan[1].config).save(plan[1].folder.result)
    plan[2].kept.parent.mkdir(parents=True)
    make_result(plan[2].config).save(plan[2].kept)
    assert [run.state for run in plan] == ["begun", "done", "done", "missing"]


def test_a_finished_run_of_another_configuration_is_refused_by_the_field(write: Write, tmp_path: Path) -> None:
    spec = read_spec(write())
    run = make_plan(spec, tmp_path)[0]
    run.folder.path.mkdir(parents=True)
    make_result(run.config).save(run.folder.result)
    assert make_plan(spec, tmp_path)[0].state == "done"
    changed = replace(run.config, optimizer=replace(run.config.optimizer, lr=0.7))
    make_result(changed).save(run.folder.result)
    with pytest.raises(ConfigError, match=r"result.json .* \(optimizer.lr is 0.7 and should be 0.1\)"):
        make_plan(spec, tmp_path)
    run.folder.result.unlink()
    run.folder.config.write_text(changed.to_yaml())
    with pytest.raises(ConfigError, match=r"config.yaml .* \(optimizer.lr is 0.7"):
        make_plan(spec, tmp_path)


def test_what_decides_nothing_may_differ_and_what_came_later_has_its_default() -> None:
    wanted = RunConfig.from_dict({"model": {"name": "vgg16", "kwargs": {"width": 8}}})
    found = RunConfig.from_dict({"name": "x", "train": {"threads": 4, "device": "cpu"}}).to_dict()
    found["model"]["kwargs"] = {"num_classes": 10, "in_channels": 3, "image_size": 32, "width": 8}
    del found["growth"]["similarity"]
    assert first_difference(wanted, found) is None
    found["data"]["source"] = "elsewhere"
    assert first_difference(wanted, found) == 'data.source is "elsewhere" and should be "digits"'
    assert first_difference(wanted, found, ignore_source=True) is None
    found["model"]["kwargs"]["width"] = 16
    assert first_difference(wanted, found, ignore_source=True) == "model.kwargs.width is 16 and should be 8"
    found["model"]["kwargs"]["width"] = 8
    found["growth"]["similarity"] = {"iterations": 3}
    assert "growth.similarity" in str(first_difference(wanted, found, ignore_source=True))


def test_the_automatic_precision_is_whatever_the_hardware_made_of_it() -> None:
    found = RunConfig.from_dict({"train": {"precision": "32-true"}}).to_dict()
    assert first_difference(RunConfig(), found) is None
    named = RunConfig.from_dict({"train": {"precision": "bf16-mixed"}})
    assert first_difference(named, found) == 'train.precision is "32-true" and should be "bf16-mixed"'


def test_only_takes_labels_slugs_and_words_of_an_axis(write: Write, tmp_path: Path) -> None:
    plan = make_plan(read_spec(write(grid={"growth.ratio": [0.25, 0.5]})), tmp_path)
    assert choose(plan, []) == plan
    assert [run.name for run in choose(plan, ["Random, ratio=0.5"])] == ["random-ratio-0.5-s0"]
    assert [run.name for run in choose(plan, ["net2net-ratio-0.25"])] == ["net2net-ratio-0.25-s0"]
    assert [run.name for run in choose(plan, ["Random"])] == ["random-ratio-0.25-s0", "random-ratio-0.5-s0"]
    for word in ("Firefly", "Net", "ratio", "Random, ratio", "0.5"):
        with pytest.raises(ConfigError, match=f"--only {word} means no row"):
            choose(plan, [word])


def test_a_row_and_a_seed_are_one_run(write: Write, tmp_path: Path) -> None:
    plan = make_plan(read_spec(write(grid={"growth.ratio": [0.25, 0.5]}, seeds=[0, 3])), tmp_path)
    assert [run.name for run in choose(plan, ["Random, ratio=0.5"], [3])] == ["random-ratio-0.5-s3"]
    assert [run.seed for run in choose(plan, [], [3])] == [3, 3, 3, 3]
    assert choose(plan, [], [0, 3]) == plan
    with pytest.raises(ConfigError, match="--seed 1 means no run: the comparison has the seeds 0, 3"):
        choose(plan, [], [1])


def test_settings_of_the_method_count_whether_named_or_not(write: Write, tmp_path: Path) -> None:
    """A result from before a setting existed is what the method did then, not what its default does now."""
    rows = [
        {"label": "Paper", "config": {"growth": {"method": "net2net", "kwargs": {"asymmetry": 0.0}}}},
        {"label": "Ours", "config": {"growth": {"method": "net2net"}}},
    ]
    paper, ours = make_plan(read_spec(write(rows=rows)), tmp_path)
    for run in (paper, ours):
        run.folder.path.mkdir(parents=True)
        make_result(run.config).save(run.folder.result)
        check(run)
    old = replace(make_result(ours.config), config=ours.config.to_dict())  # names no setting
    for run in (paper, ours):
        old.save(run.folder.result)
    check(paper)
    with pytest.raises(ConfigError, match=r"growth.kwargs.asymmetry is 0.0 and should be 1.0"):
        check(ours)
