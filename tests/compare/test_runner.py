"""Processes: as many as asked for, none left behind, and failures that stop nobody else."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from auxin.cli import main
from auxin.compare import Run, make_plan, read_spec, run_all, runner
from auxin.training import Result, Trainer
from auxin.training.lock import alone_in
from auxin.training.metrics import read_rows
from tests.compare.conftest import make_result

Write = Callable[..., Path]
ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("AUXIN_DEBUG", "0")


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def quick_command(run: Run, settings: Sequence[str]) -> list[str]:
    """A stand-in for training: it notes when it ran, and leaves a result; seed 1 fails and seed 2 is killed."""
    make_result(run.config).save(run.folder.path / "ready.json")
    script = f"""
import os, sys, time
os.chdir({str(run.folder.path)!r})
began = time.monotonic()
time.sleep(0.3)
if {run.seed} == 1:
    sys.exit("auxin: the loss is no longer finite.")
if {run.seed} == 2:
    os.kill(os.getpid(), 9)
open("times", "w").write(f"{{began}} {{time.monotonic()}} {{os.environ['OMP_NUM_THREADS']}} {" ".join(settings)}")
os.rename("ready.json", "result.json")
"""
    return [sys.executable, "-c", script]


def test_several_at_a_time_and_a_failure_stops_nobody(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "command", quick_command)
    plan = make_plan(read_spec(write(seeds=[1, 2, 3, 4])), tmp_path / "runs")
    ended: list[str] = []
    failed = run_all(plan, jobs=3, threads=2, console=QUIET, finished=lambda run: ended.append(run.name))
    assert sorted(ended) == ["net2net-s3", "net2net-s4", "random-s3", "random-s4"]
    assert sorted(failed) == ["net2net-s1", "net2net-s2", "random-s1", "random-s2"]
    assert failed["random-s1"].startswith("the loss is no longer finite (see ")
    assert "SIGKILL, perhaps because memory ran out" in failed["random-s2"]
    words = [(run.folder.path / "times").read_text().split() for run in plan if run.name in ended]
    assert all(word[2] == "2" and word[3:5] == ["--train.threads", "2"] for word in words)
    spans = [(float(word[0]), float(word[1])) for word in words]
    together = [sum(a <= begin < b for a, b in spans) for begin, _ in spans]
    assert 2 <= max(together) <= 3
    config = yaml.safe_load(plan[0].folder.config.read_text())
    assert (config["name"], config["train"]["threads"]) == ("random-s1", 2)


def test_the_command_reports_failures_with_exit_code_1_and_skips_what_is_done(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "command", quick_command)
    words = ["compare", str(write(seeds=[1, 3])), "--results", "results"]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "2 of 4 runs finished" in printed
    assert "failed: net2net-s1: the loss is no longer finite" in printed
    assert sorted(path.name for path in Path("results/methods").iterdir()) == [
        "net2net-s3.json", "random-s3.json", "table.md", "table.tex",
    ]  # fmt: skip
    assert main([*words, "--only", "Random"]) == 1
    assert re.findall(r"(?:started|resumed) +(\S+)", capsys.readouterr().out) == ["random-s1"]
    before = Path("results/methods/table.md").read_text()
    Path("results/methods/table.md").unlink()
    assert main([*words, "--table-only"]) == 0
    assert Path("results/methods/table.md").read_text() == before


@pytest.mark.parametrize("option", ["--results", "--out"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_trains(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, place: str
) -> None:
    monkeypatch.setattr(runner, "command", quick_command)
    Path("file").touch()
    words = ["compare", str(write(seeds=[3])), option, place]
    for more in ([], ["--table-only"]):
        assert main([*words, *more]) == 2
        printed = capsys.readouterr()
        assert f"auxin: The folder {place}/methods cannot be made (Not a directory)" in printed.err
        assert printed.err.count("\n") == 1 and "started" not in printed.out
    assert not list(Path().rglob("log.txt"))


def start(words: list[str], errors: Path) -> multiprocessing.process.BaseProcess:
    def target() -> None:
        sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(main(words))

    # Forked, since importing torch once more would take longer than the test.
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def test_ctrl_c_stops_every_process_and_says_how_to_go_on(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = "import os, time; open(f'{os.getpid()}.pid', 'w').close(); time.sleep(600)"
    monkeypatch.setattr(runner, "command", lambda run, settings: [sys.executable, "-c", script])
    words = ["compare", str(write(seeds=3)), "--jobs", "2", "--cores", "2"]
    process = start(words, tmp_path / "errors")
    wait_for(lambda: len(list(Path().glob("*.pid"))) == 2)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert (tmp_path / "errors").read_text() == (
        f"auxin: interrupted with 0 of 6 runs finished; go on with: auxin {' '.join(words)}\n"
    )
    for path in Path().glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.stem), 0)


def outcome(result: Result) -> list[dict[str, object]]:
    return [
        {k: v for k, v in asdict(phase).items() if "seconds" not in k and "energy" not in k} for phase in result.phases
    ]


def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(write: Write, tmp_path: Path) -> None:
    rows = [{"label": "Long", "config": {"train.epochs": 60, "growth.every": 25, "train.threads": 1}}]
    words = ["compare", str(write(rows=rows)), "--results", "results", "--cores", "1"]
    (run,) = make_plan(read_spec(Path(words[1])), Path("runs"), Path("results"))
    process = start(words, tmp_path / "errors")
    wait_for(lambda: len(read_rows(run.folder.metrics)) >= 3)
    process.kill()
    process.join(30)
    with alone_in(run.folder.path):
        pass  # else a process was left behind
    assert run.state == "begun"
    assert 3 <= len(read_rows(run.folder.metrics)) < 60

    assert main(words) == 0
    whole = Trainer(run.config, tmp_path / "whole", console=QUIET).fit()
    found = Result.read(run.kept or Path())
    assert outcome(found) == outcome(whole)
    assert found.widths == whole.widths
    assert "| Long | 1 |" in Path("results/methods/table.md").read_text()
    assert main([*words, "--dry-run"]) == 0


def test_a_failure_is_the_last_sentence_of_ours_in_the_log(tmp_path: Path) -> None:
    from types import SimpleNamespace
    from typing import cast

    from auxin.compare.runner import _failure, _Worker

    (tmp_path / "log.txt").write_text("auxin: run is being trained by another process.\nepoch 1/4\n")
    run = SimpleNamespace(folder=SimpleNamespace(path=tmp_path, result=tmp_path / "result.json"))
    worker = SimpleNamespace(process=SimpleNamespace(returncode=2), run=run, log_start=0)
    assert (_failure(cast(_Worker, worker)) or "").startswith("run is being trained by another process (see ")
