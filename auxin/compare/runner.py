"""Running what a comparison lacks: several processes at a time, each one ``auxin resume``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import yaml
from rich.console import Console

from auxin.compare.board import Board
from auxin.compare.plan import Run, threads_of
from auxin.training.checkpoint import write_durably

_PATIENCE = 10.0
"""Seconds that a process gets to end before it is killed."""


@dataclass(frozen=True)
class _Worker:
    run: Run
    process: subprocess.Popen[bytes]
    log_start: int
    started: float


def run_all(
    runs: Sequence[Run], *, jobs: int, threads: int, console: Console, finished: Callable[[Run], None]
) -> dict[str, str]:
    """Train what is not finished; a run that fails does not stop the others.

    Args:
        runs: What to train, in order.
        jobs: Processes at a time.
        threads: CPU threads of each. A run that was begun with fewer keeps them, so that it stays bit-equal.
        console: Where progress goes.
        finished: Called after each run that ended well.

    Returns:
        Name of each run that failed → why. An exception, Ctrl-C included, stops all processes before it is passed on;
        whatever they had trained up to their last checkpoints stays.
    """
    waiting, working, failed = deque(runs), list[_Worker](), dict[str, str]()
    with Board(len(runs), console) as board:
        try:
            while waiting or working:
                while waiting and len(working) < jobs:
                    run = waiting.popleft()
                    board.started(run, resumed=run.state == "begun")
                    working.append(_start(run, threads))
                for worker in [worker for worker in working if worker.process.poll() is not None]:
                    working.remove(worker)
                    reason = _failure(worker)
                    if reason is None:
                        finished(worker.run)
                    else:
                        failed[worker.run.name] = reason
                    board.ended(worker.run, time.monotonic() - worker.started, reason)
                board.update()
                time.sleep(0.1)
        finally:
            _stop(working)
    return failed


def _start(run: Run, threads: int) -> _Worker:
    folder = run.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.config.exists():
        begun_with = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["train"].get("threads")
    else:
        begun_with = threads_of(run.config, threads)
        train = replace(run.config.train, threads=begun_with)
        draft = folder.config.with_suffix(".part")
        write_durably(draft, replace(run.config, train=train).to_yaml().encode())
        os.replace(draft, folder.config)
    count = str(min(threads, begun_with or threads))
    # The settings that the plan lets differ are given anew, since the machine may be another one.
    settings = ["--train.threads", count, "--train.device", run.config.train.device]
    settings += ["--data.source", run.config.data.source]
    log = folder.path / "log.txt"
    with open(log, "ab") as file:
        start = file.tell()
        # Its own session: Ctrl-C reaches this process alone, which then stops the others.
        process = subprocess.Popen(
            command(run, settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
            start_new_session=True,
        )
    return _Worker(run, process, start, time.monotonic())


def command(run: Run, settings: Sequence[str]) -> list[str]:
    """Return what trains a run in a process of its own.

    Args:
        run: The run; its folder holds its configuration.
        settings: Options of ``auxin resume``.

    Returns:
        The words of a command.
    """
    return [sys.executable, "-m", "auxin.cli.worker", str(os.getpid()), str(run.folder.path), *settings]


def _failure(worker: _Worker) -> str | None:
    """Return why a process that has ended failed, in a sentence, or None if it did not."""
    code = worker.process.returncode
    if code == 0 and worker.run.folder.result.exists():
        return None
    log = worker.run.folder.path / "log.txt"
    if code < 0:
        hint = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(-code).name}{hint} (see {log})"
    lines = log.read_bytes()[worker.log_start :].decode(errors="replace").split("\n")
    said = [line for line in lines if line.startswith("auxin: ")] or [line for line in lines if line.strip()]
    last = said[-1] if said else f"exit code {code}"
    return f"{last.strip().removeprefix('auxin: ').rstrip('.')} (see {log})"


def _stop(workers: Sequence[_Worker]) -> None:
    # SIGTERM ends a run at once, which is safe at any moment; SIGINT is ignored under a shell's background.
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
