from pathlib import Path

import pytest
import yaml

from auxin.compare.spec import read_spec
from auxin.errors import ConfigError
from auxin.training.config import GrowthConfig, RunConfig, load_config
from auxin.training.folder import RunFolder


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = RunConfig.from_dict(
        {
            "name": "abc",
            "model": {"name": "resnet20", "kwargs": {"width": 8}},
            "optimizer": {"name": "adamw", "lr": 0.001, "betas": [0.8, 0.99]},
            "schedule": {"name": "step", "milestones": [3, 5]},
            "growth": {"method": None, "budget": "count", "count": "30k", "of": "parameters", "until": "params<=325k"},
        }
    )
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(["--config", str(tmp_path / "c.yaml")]) == config
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.growth.count == 30_000
    assert config.growth.method is None
    assert config.optimizer.betas == (0.8, 0.99)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"train": {"epochs": 3, "seed": 4}, "model": {"kwargs": {"a": 1}}}))
    config = load_config(["--config", str(tmp_path / "c.yaml"), "--train.epochs", "5", "--model.kwargs.b", "2"])
    assert (config.train.epochs, config.train.seed) == (5, 4)
    assert config.model.kwargs == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.epocs", "3"], r"train\.epochs"),
        (["--train.epochs", "many"], r"train\.epochs"),
        (["--train.epochs", "0"], "at least 1"),
        (["--optimizer.name", "lion"], "sgd"),
        (["--optimizer.lr", "-1"], "above 0"),
        (["--optimizer.momentum", "0"], "nesterov"),
        (["--schedule.name", "step"], "milestones"),
        (["--data.val_fraction", "1.5"], "between 0 and 1"),
        (["--growth.count", "many"], "325k"),
        (["--growth.multiple_of", "0"], "such as 16"),
        (["--growth.multiple_of", "8", "--growth.scope", "global"], "growth.scope per_group"),
        (["--growth.count", "1e400"], "growth.count is 1e400: give a smaller"),
        (["--target.params", "1e400"], "target.params is 1e400: give a smaller"),
        (["--optimizer.betas", "[2, 3]"], "from 0 to below 1"),
        (["--optimizer.eps", "-1"], "optimizer.eps is -1"),
        (["--name", "a/b"], "folder"),
        (["--schedule.decay", "0"], "above 0"),
        (["--growth.trigger", "planned"], "belong together"),
        (["--growth.plan", "[{after: 2, deepen: {a: 1}}]"], "belong together"),
        (["--growth.trigger", "planned", "--growth.plan", "[{after: 2}]"], "does nothing"),
        (
            ["--growth.trigger", "planned", "--growth.plan", "[{after: 9, deepen: {a: 1}}]", "--train.epochs", "9"],
            "run has 9",
        ),
        (["--growth.trigger", "planned", "--growth.plan", "[{after: 2, widen: {a: many}}]"], "many"),
        (
            [
                "--growth.trigger",
                "planned",
                "--growth.plan",
                "[{after: 2, widen: {a: 3}}]",
                "--growth.until",
                "params<=9k",
            ],
            "growth.until out",
        ),
        (
            ["--growth.trigger", "planned", "--growth.plan", "[{after: 2, widen: {a: 3}}]", "--target.params", "9k"],
            "target.params",
        ),
        (["--config", "nowhere.yaml"], "nowhere"),
    ],
)
def test_mistakes_are_named_in_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["train: {epoch: 3}", "trian: {epochs: 3}"])
def test_an_unknown_key_of_a_file_is_named_with_the_nearest(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"did you mean train\.epochs"):
        load_config(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("text", ["train: [", "just words", "train: 3"])
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("data", [b"model: {name: vgg16}\ntrain: [\n", b"name: \xff\n"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, data: bytes) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("train: {epochs: 3}\n")
    bad.write_bytes(data)
    for words in (["--config", str(good), "--config", str(bad)], [f"--config={bad}"]):
        with pytest.raises(ConfigError, match=r"bad\.yaml is not usable YAML") as caught:
            load_config(words)
        assert "unicode string" not in str(caught.value) and "\n" not in str(caught.value)


def test_every_experiment_is_a_valid_configuration() -> None:
    files = sorted(Path(__file__).parents[2].glob("experiments/**/*.yaml"))
    comparisons = [file for file in files if "rows" in yaml.safe_load(file.read_text())]
    assert comparisons and len(comparisons) < len(files)
    for file in files:
        if file in comparisons:
            assert all(len(row.label) and row.config.train.epochs >= 5 for row in read_spec(file).rows)
        else:
            assert load_config(["--config", str(file)]).train.epochs >= 10


def test_run_folders_are_never_reused(tmp_path: Path) -> None:
    names = [RunFolder.make("a", tmp_path / "runs").path.name for _ in range(3)]
    assert names == ["a-1", "a-2", "a-3"]


def test_a_parent_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="runs is not a folder"):
        RunFolder.make("a", tmp_path / "runs")


def test_counts_take_suffixes() -> None:
    assert [GrowthConfig(count=count).count for count in ("30k", "1.2M", 8, "8")] == [30_000, 1_200_000, 8, 8]


@pytest.mark.parametrize("text, words", [
    ("growth: off", r"growth is 'off': .* such as growth: \{method: null\}"),
    ("train: 3", r"train is 3: .* such as train: \{epochs: 3\}"),
    ("model: vgg16", r"such as model: \{name: vgg16\}"),
    ("train:", "train is None"),
    ("", "holds no settings"),
    ("- a", "holds no settings"),
    ("train: {epochs: 3}\ntrain: {batch_size: 3}", "line 2 gives train a second time"),
])  # fmt: skip
def test_a_part_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{words}"):
        load_config(["--config", str(path)])
