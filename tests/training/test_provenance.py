import shutil
import subprocess
from pathlib import Path

import pytest

from auxin.training import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository of one commit that holds this module as auxin/training/provenance.py."""
    module = tmp_path / "auxin" / "training" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("# one\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def test_a_result_does_not_make_the_checkout_dirty_but_code_does(checkout: Path) -> None:
    assert provenance.commit()["dirty"] is False and len(provenance.commit()["commit"]) == 40
    results = checkout / "experiments" / "paper" / "results" / "table"
    results.mkdir(parents=True)
    (results / "row-s0.json").write_text("{}")
    assert provenance.commit()["dirty"] is False
    (checkout / "auxin" / "new.py").write_text("")
    assert provenance.commit()["dirty"] is True


def test_a_changed_file_makes_it_dirty_and_an_installed_copy_has_no_commit(checkout: Path) -> None:
    module = checkout / "auxin" / "training" / "provenance.py"
    module.write_text("# two\n")
    assert provenance.commit()["dirty"] is True
    subprocess.run(["git", "-C", str(checkout), "rm", "-q", "--cached", str(module)], check=True)
    assert provenance.commit() == {"commit": "unknown", "dirty": None}
