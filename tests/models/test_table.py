import sys
from pathlib import Path

import pytest
from torch import nn

from auxin.errors import ConfigError
from auxin.models import MODELS, VGG16, build

USER_FILE = """
from torch import nn

def make(width=3):
    return nn.Linear(width, 2)

class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

class Zoo:
    @staticmethod
    def small():
        return nn.Linear(1, 1)

def wrong():
    return "no module"

def fails():
    raise RuntimeError("out of ideas")

number = 3
"""


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "user_nets_of_test_table.py").write_text(USER_FILE)
    (tmp_path / "broken_nets_of_test_table.py").write_text("1 / 0\n")
    (tmp_path / "needy_nets_of_test_table.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_nets_of_test_table")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", MODELS)
def test_own_models_by_name(name: str) -> None:
    model = build(name, num_classes=7)
    assert isinstance(model, nn.Module)
    assert model.classifier.out_features == 7


def test_installed_factory() -> None:
    assert isinstance(build("auxin.models:vgg16", width=4), VGG16)


def test_factories_in_the_working_directory(user_folder: Path) -> None:
    path_before = list(sys.path)
    assert build("user_nets_of_test_table:make", width=5).in_features == 5
    assert build("user_nets_of_test_table:Net").in_features == 4
    assert build("user_nets_of_test_table:Zoo.small").in_features == 1
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        ("vgg61", {}, "choose one of mobilenet_v1, resnet20, secnn, small_cnn, vgg16, vit"),
        ("vgg16", {"depth": 3}, "depth"),
        ("vgg16", {"width": -1}, "each 1 or more"),
        ("vgg16", {"width": [4, 8]}, "5 stages"),
        ("small_cnn", {"width": -1}, "failed"),
        ("my-file.py:make", {}, "not of the form package.module:factory"),
        ("user_nets_of_test_table:", {}, "not of the form package.module:factory"),
        ("nowhere_to_be_found:make", {}, "There is no module 'nowhere_to_be_found'"),
        ("user_nets_of_test_table:mak", {}, "has no 'mak'"),
        ("user_nets_of_test_table:number", {}, "is a int"),
        ("user_nets_of_test_table:wrong", {}, "returned a str"),
        ("user_nets_of_test_table:fails", {}, "RuntimeError: out of ideas"),
        ("user_nets_of_test_table:make", {"height": 1}, "takes (width=3)"),
        ("broken_nets_of_test_table:make", {}, "ZeroDivisionError"),
        ("needy_nets_of_test_table:make", {}, "imports 'a_package_nobody_has', which is not installed"),
    ],
)
def test_mistakes_are_one_clear_sentence(user_folder: Path, name: str, kwargs: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, **kwargs)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
