import errno
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from auxin import cli
from auxin.cli import COMMANDS, main, train
from auxin.training import TrainConfig
from auxin.training import config as configurations

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AUXIN_DEBUG": "0"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUXIN_DEBUG", raising=False)


def write_config(text: str = "model: {name: small_cnn}\n") -> str:
    Path("c.yaml").write_text(text)
    return "c.yaml"


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such command": (["grow"], "there is no command 'grow'"),
    "train without a file": (["train"], "needs a configuration file"),
    "missing file": (["train", "nowhere.yaml"], "no configuration file nowhere.yaml"),
    "bad key": (["train", "c.yaml", "--train.epoch", "3"], "did you mean train.epochs"),
    "bad value": (["train", "c.yaml", "--train.epochs", "few"], "train.epochs"),
    "bad choice": (["train", "c.yaml", "--optimizer.name", "lion"], "adamw"),
    "bad range": (["train", "c.yaml", "--train.epochs", "0"], "at least 1"),
    "no such model": (["train", "c.yaml", "--model.name", "vgg17"], "vgg17"),
    "a factory that ends": (["train", "c.yaml", "--model.name", "ending:make"], "SystemExit"),
    "no such method": (["train", "c.yaml", "--growth.method", "magic"], "net2net"),
    "no such data": (["train", "c.yaml", "--data", "./no/such/folder"], "no/such/folder"),
    "bad cap": (["train", "c.yaml", "--growth.until", "lots"], "lots"),
    "resume without a run": (["resume"], "needs the folder of a run"),
    "no such run": (["resume", "runs/x-1"], "not the folder of a run"),
    "unknown option": (["demo", "--bogus"], "--bogus"),
    "no input": (["inspect", "small_cnn"], "--input"),
    "bad shape": (["inspect", "small_cnn", "--input", "1x8"], "not a shape"),
    "bad type": (["inspect", "small_cnn", "--input", "1,8:int7"], "int64"),
    "no such factory": (["inspect", "auxin.models:nothing", "--input", "1,8"], "nothing"),
    "wrong input": (["inspect", "small_cnn", "--input", "1,8"], ""),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = MISTAKES[name]
    write_config()
    Path("ending.py").write_text("def make():\n    raise SystemExit(3)\n")
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("auxin: ")
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip()[-1] in ".?)"
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert not list(Path("runs").glob("*")), "a run that never began left a folder"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUXIN_DEBUG", "1")
    with pytest.raises(cli.AuxinError):
        main(["grow"])


def test_an_unexpected_error_is_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "auxin: unexpected RuntimeError: two lines (AUXIN_DEBUG=1 shows where).\n"


def test_a_thread_that_fails_beside_it_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        def write() -> None:
            raise full

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        raise full

    full = OSError(errno.ENOSPC, "No space left on device", "events")
    monkeypatch.setattr(cli, "_run", fail)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "auxin: events: No space left on device.\n"


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("auxin.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 2
    assert 'pip install "auxin[app]"' in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_teaches_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"examples:\n  auxin {command}" in capsys.readouterr().out


def test_field_documentation_can_be_shown_as_help() -> None:
    # argparse formats help with %, so one percent sign breaks the whole page.
    for name in configurations.RunConfig.__dataclass_fields__:
        part = {"name": "RunConfig"}.get(name, f"{name.capitalize()}Config")
        documentation = getattr(configurations, part).__doc__
        assert "%" not in documentation
        for field in getattr(configurations, part).__dataclass_fields__:
            assert f"        {field}: " in documentation, (part, field)


def test_print_config_gives_a_file_that_train_reads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--print_config"])
    Path("c.yaml").write_text(capsys.readouterr().out)
    assert configurations.load_config(["--config", "c.yaml"]).train == TrainConfig()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    write_config("name: long\nmodel: {name: small_cnn}\ntrain: {epochs: 100000, precision: 32-true, threads: 1}\n")
    command = [sys.executable, "-m", "auxin", "train", "c.yaml", "--out", "runs"]
    # A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 90
    while not (tmp_path / "runs/long-1/checkpoints/last.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "auxin: interrupted; go on with: auxin resume runs/long-1\n"


def test_a_file_whose_name_is_no_folder_name_trains_and_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    text = "model: {name: small_cnn}\ntrain: {epochs: 1, batch_size: 256, precision: 32-true, threads: 1}\n"
    Path("-my run (2).yaml").write_text(text)
    assert main(["train", "./-my run (2).yaml"]) == 0
    Path("runs/my-run-2-1/result.json").unlink()
    assert main(["resume", "runs/my-run-2-1"]) == 0
    capsys.readouterr()
    assert train._name_of(Path("((.yaml")) == "run"


def test_letters_that_a_terminal_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(cli, "_run", lambda *_: print("4 → 6"))
    main(["demo"])
    file.flush()
    assert file.buffer.getvalue() == b"4 ? 6\n"  # type: ignore[attr-defined]


def test_a_forward_that_cannot_be_captured_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[logging.LogRecord] = []
    for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes"):
        handler = logging.Handler()
        monkeypatch.setattr(handler, "emit", lines.append)
        logging.getLogger(name).addHandler(handler)
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    Path("branching.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = torch.nn.Linear(3, 3)\n\n    def forward(self, x):\n"
        "        return self.a(x) if x.data_ptr() > 0 else x\n"
    )
    assert main(["inspect", "branching:Net", "--input", "1,3"]) == 2
    error = capsys.readouterr().err
    assert "could not capture Net, at " in error and "if x.data_ptr() > 0" in error and error.count("\n") == 1
    assert not lines


def test_a_warning_is_one_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("looking.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)\n\n    def forward(self, x):\n"
        "        h = self.a(x)\n        return self.b(h if h.abs().max() < 100 else h / 100)\n"
    )
    assert main(["inspect", "looking:Net", "--input", "2,3"]) == 0
    out, error = capsys.readouterr()
    assert "1 width groups can grow" in out
    assert error.startswith("auxin: The forward of Net looks at the values of its tensors (") and error.count("\n") == 1
