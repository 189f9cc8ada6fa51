from collections.abc import Callable
from pathlib import Path

import pytest

from auxin.compare import Spec, read_spec
from auxin.errors import ConfigError
from auxin.training import load_config

Write = Callable[..., Path]
METHODS = {"Random": {"growth.method": "random"}, "Net2Net": {"growth.method": "net2net"}}
SIMILARITY = {"": {}, "+ similarity": {"growth.similarity": {"iterations": 5}}}


def labels(spec: Spec) -> list[str]:
    return [row.label for row in spec.rows]


def test_a_row_is_what_auxin_train_reads_from_the_same_files(write: Write, tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text("train: {epochs: 9}\ngrowth: {every: 3, similarity: {iterations: 7}}\n")
    (tmp_path / "row.yaml").write_text("growth: {method: random, similarity: {lr: 0.5}}\n")
    spec = read_spec(write(base="defaults.yaml", rows=[{"label": "A", "config": ["row.yaml", {"optimizer.lr": 0.2}]}]))
    files = ["--config", str(tmp_path / "defaults.yaml"), "--config", str(tmp_path / "row.yaml")]
    assert spec.rows[0].config == load_config([*files, "--optimizer.lr", "0.2"])
    assert spec.rows[0].config.growth.similarity.iterations == 7
    assert spec.rows[0].config.growth.similarity.lr == 0.5


def test_rows_and_grid_combine_into_a_product(write: Write) -> None:
    spec = read_spec(write(grid={"similarity": SIMILARITY, "growth.ratio": [0.25, 0.5]}, rows=None))
    assert labels(spec) == ["ratio=0.25", "ratio=0.5", "+ similarity, ratio=0.25", "+ similarity, ratio=0.5"]
    spec = read_spec(write(grid={"similarity": SIMILARITY, "model.name": ["small_cnn", "vgg16"]}))
    assert labels(spec)[:4] == ["Random, small_cnn", "Random, vgg16", "Random + similarity, small_cnn",
                                "Random + similarity, vgg16"]  # fmt: skip
    assert len(spec.rows) == 8
    last = spec.rows[-1].config
    assert (last.growth.method, last.growth.similarity.iterations, last.model.name) == ("net2net", 5, "vgg16")
    assert spec.rows[-1].slug == "net2net-similarity-vgg16"


def test_a_row_wins_over_the_recipe_and_the_recipe_over_the_base(write: Write) -> None:
    rows = [{"label": "A"}, {"label": "B", "config": {"train.epochs": 5}}]
    path = write(rows=rows, recipes={"short": {"train.epochs": 3}, "full": {}})
    assert [row.config.train.epochs for row in read_spec(path).rows] == [3, 5]
    full = read_spec(path, "full")
    assert [row.config.train.epochs for row in full.rows] == [2, 5]
    assert (full.name, full.title) == ("methods-full", "methods (full)")


def test_on_off_and_1e_3_are_read_as_their_author_means_them(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "grid:\n  flip:\n    on: {data.flip: true}\n    off: {data.flip: false}\n  optimizer.lr: [1e-3, 0.5]\n"
    )
    spec = read_spec(tmp_path / "s.yaml")
    assert labels(spec) == ["on, lr=0.001", "on, lr=0.5", "off, lr=0.001", "off, lr=0.5"]
    assert [row.config.data.flip for row in spec.rows] == [True, True, False, False]
    assert spec.rows[0].config.optimizer.lr == 0.001


def test_a_baseline_is_a_label_or_the_word_of_an_axis(write: Write) -> None:
    assert [row.baseline for row in read_spec(write()).rows] == [None, "Random"]
    spec = read_spec(write(rows=None, grid={"method": METHODS, "similarity": SIMILARITY}, baseline=""))
    assert {row.label: row.baseline for row in spec.rows} == {
        "Random": None, "Random + similarity": "Random", "Net2Net": None, "Net2Net + similarity": "Net2Net",
    }  # fmt: skip
    spec = read_spec(write(rows=None, grid={"method": METHODS, "similarity": SIMILARITY}, baseline="Random"))
    assert spec.rows[3].baseline == "Random + similarity"


def test_the_worked_example_of_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "compare.md"
    (tmp_path / "methods.yaml").write_text(page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0])
    spec = read_spec(tmp_path / "methods.yaml")
    assert (spec.name, spec.title, spec.seeds) == ("methods-short", "Methods on digits (short)", (0, 1, 2))
    assert labels(spec)[-2:] == ["Firefly", "Firefly + similarity"]
    assert [row.baseline for row in spec.rows][-2:] == [None, "Firefly"]


def test_published_values_and_their_source(write: Write) -> None:
    published = {"Random": {"test": 86.49, "seconds": 3022}, "Net2Net": {"test": "91.6 ± 0.2", "source": "Other"}}
    first, second = read_spec(write(published=published, source="Paper, Table 1")).rows
    assert (first.published, first.source) == ({"test": 86.49, "seconds": 3022}, "Paper, Table 1")
    assert (second.published, second.source) == ({"test": "91.6 ± 0.2"}, "Other")


def test_data_moves_the_images_of_all_rows_or_of_those_named(write: Write) -> None:
    path = write(grid={"data.source": ["digits", "org/set"]})
    spec = read_spec(path, data=["org/set=here"])
    assert [row.config.data.source for row in spec.rows] == ["digits", "here"] * 2
    assert labels(spec)[1] == "Random, org/set"
    with pytest.raises(ConfigError, match="--data NAME=SOURCE for each"):
        read_spec(path, data=["here"])
    assert {row.config.data.source for row in read_spec(write(), data=["here"]).rows} == {"here"}


MISTAKES = {
    "unknown key": ({"row": []}, "there is no 'row'; did you mean 'rows'?"),
    "nothing to compare": ({"rows": None}, "compares nothing"),
    "no label": ({"rows": [{"config": {}}]}, "row 1 has no label"),
    "unknown row key": ({"rows": [{"label": "A", "confg": {}}]}, "did you mean 'config'"),
    "unknown field": ({"rows": [{"label": "A", "config": {"growth.methd": "random"}}]}, "did you mean growth.method"),
    "bad value": ({"grid": {"train.epochs": [0]}}, 'row "Random, epochs=0": train.epochs is 0'),
    "no such file": ({"base": "nowhere.yaml"}, "nowhere.yaml"),
    "no such baseline": ({"baseline": "Randm"}, "did you mean 'Random'"),
    "baseline of a list": ({"baseline": ["Random"]}, "baseline is ['Random']: give the label of a row"),
    "seed of a base": ({"base": {"train.seed": 3}}, "list them under seeds"),
    "seed of a row": ({"rows": [{"label": "A", "config": {"train": {"seed": 3}}}]}, "list them under seeds"),
    "seed of a recipe": ({"recipes": {"a": {"train.seed": 3}}}, "list them under seeds"),
    "seed of a grid": ({"grid": {"train.seed": [1, 2]}}, "list them under seeds"),
    "name of a row": ({"rows": [{"label": "A", "config": {"name": "a"}}]}, "give the row a label"),
    "unknown metric": ({"metrics": ["tset"]}, "did you mean 'test'"),
    "bad seeds": ({"seeds": [1, 1]}, "different whole numbers"),
    "same folder": ({"rows": [{"label": "A b"}, {"label": "a-B", "config": {"train.epochs": 3}}]}, "share a folder"),
    "same label": (
        {"rows": [{"label": "B"}, {"label": "B", "config": {"train.epochs": 3}}]},
        'the rows "B" and "B" would share a folder',
    ),
    "label of two lines": ({"rows": [{"label": "A\nB"}]}, "row 1: the label 'A\\nB' does not fit on one line"),
    "label that ends a line": ({"rows": [{"label": "A\n"}]}, "does not fit on one line"),
    "same run": ({"rows": [{"label": "A"}, {"label": "B"}]}, "one and the same run"),
    "published for nobody": ({"published": {"Rando": {"test": 1}}}, "did you mean 'Random'"),
    "published many times": (
        {"rows": [{"label": "A", "published": {"test": 1}}], "grid": {"train.epochs": [1, 2]}},
        "becomes several rows",
    ),
    "bad name": ({"name": "../up"}, "names a folder"),
    "one run": ({"train": {"epochs": 2}}, "auxin train takes"),
    "runs of nobody": ({"rows": [{"label": "A", "same_as": "table1"}]}, "same_as is 'table1'"),
    "runs of many": ({"rows": [{"label": "A", "same_as": "a/B"}], "grid": {"train.epochs": [1, 2]}}, "becomes several"),
    "empty axis": ({"grid": {"train.epochs": []}}, "grid.train.epochs is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str, write: Write) -> None:
    changes, expected = MISTAKES[name]
    with pytest.raises(ConfigError) as raised:
        read_spec(write(**changes))
    text = str(raised.value)
    assert expected in text
    assert "\n" not in text
    assert text[-1] in ".?"


def test_a_recipe_must_exist(write: Write) -> None:
    with pytest.raises(ConfigError, match="has no recipes"):
        read_spec(write(), "short")
    with pytest.raises(ConfigError, match="choose one of short, full"):
        read_spec(write(recipes={"short": {}, "full": {}}), "long")
    path = write(recipes={60: {"train.epochs": 60}, 9: {"train.epochs": 9}})
    assert [read_spec(path, name).rows[0].config.train.epochs for name in (None, "9")] == [60, 9]


def test_a_file_that_is_no_yaml_or_says_a_thing_twice(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("rows: [")
    with pytest.raises(ConfigError, match="not usable YAML"):
        read_spec(tmp_path / "bad.yaml")
    (tmp_path / "key.yaml").write_text("grid:\n  ? [a, b]\n  : {x: {}}\n")
    with pytest.raises(ConfigError, match="a list or mapping as a key"):
        read_spec(tmp_path / "key.yaml")
    (tmp_path / "twice.yaml").write_text("grid:\n  a: {x: {}}\n  a: {y: {}}\n")
    with pytest.raises(ConfigError, match="line 3 gives a a second time"):
        read_spec(tmp_path / "twice.yaml")
    with pytest.raises(ConfigError, match="check the path"):
        read_spec(tmp_path / "none.yaml")
