"""The pages about growth methods, one for each, with an index that is up to date; and a page that is a script."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import auxin

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "methods"


def test_the_index_is_up_to_date():
    command = [sys.executable, str(PAGES / "make_index.py"), "--check"]
    done = subprocess.run(command, cwd=PAGES.parents[1], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"run python docs/methods/make_index.py\n{done.stderr}"


@pytest.mark.parametrize("method", auxin.METHODS)
def test_every_method_has_a_page(method):
    assert (PAGES / f"{method}.md").read_text(encoding="utf-8").startswith(f"# {method}\n")


def test_the_index_links_every_page_and_nothing_else():
    linked = set(re.findall(r"\]\((\S+\.md)\)", (PAGES / "README.md").read_text(encoding="utf-8")))
    assert linked == {page.name for page in PAGES.glob("*.md")} - {"README.md"}


def test_the_page_on_resuming_runs_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "resume.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/resume.md", "exec"), {})  # ends with an assertion of its own
