import importlib.util
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from auxin.training import energy
from auxin.training.energy import EnergyMeter, energy_meter

needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="needs the optional extra energy (codecarbon)"
)


@needs_codecarbon
def test_readings_grow_resume_and_end() -> None:
    threads, rng, python = threading.active_count(), torch.get_rng_state(), random.getstate()
    meter = energy_meter(kwh_before=2.0)
    assert meter is not None and meter.read() is None, "not started yet"
    meter.start()
    first = meter.read()
    time.sleep(0.3)
    second = meter.read()
    assert first is not None and second is not None and 2.0 < first < second < 2.01
    used = meter.stop()
    assert used is not None and second <= used.kwh < 2.01
    assert used.source in ("measured", "modelled") and used.note == meter.note and used.note.endswith(".")
    assert meter.read() == used.kwh, "the last reading stays"
    time.sleep(0.05)
    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), rng) and random.getstate() == python


SILENT = """
import importlib.util, socket, sys

def refuse(*args, **kwargs):
    print("network", args, file=sys.stderr)  # codecarbon would swallow an exception alone
    raise OSError

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
spec = importlib.util.spec_from_file_location("energy", sys.argv[1])  # alone, for the whole package takes seconds
sys.modules["energy"] = energy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(energy)
meter = energy.energy_meter()
meter.start()
assert meter.read() > 0, meter.note
assert meter.stop() is not None
"""


@needs_codecarbon
def test_nothing_is_printed_written_or_sent_even_if_codecarbon_is_set_up_to(tmp_path: Path) -> None:
    home, work, temporary = tmp_path / "home", tmp_path / "work", tmp_path / "tmp"
    for folder in (home, work, temporary):
        folder.mkdir()
    text = "[codecarbon]\noutput_methods=csv,logger\nemissions_endpoint=http://localhost:9\nco2_signal_api_token=x\n"
    (home / ".codecarbon.config").write_text(text + "log_level=debug\npue=5\n")
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", SILENT, str(Path(energy.__file__).resolve())]
    run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "" and run.stderr == ""
    assert not list(work.iterdir()) and not list(temporary.iterdir())


def test_without_codecarbon_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    assert energy_meter() is None


@pytest.mark.parametrize("broken", ["import", "start", "flush", "silent", "stop", "later"])
def test_a_failing_codecarbon_never_breaks_a_run(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importer = SimpleNamespace(import_module=lambda name: fake(name, broken))
    monkeypatch.setattr(energy, "importlib", importer)
    meter = EnergyMeter(kwh_before=1.0)
    meter.start()
    if broken in ("stop", "later"):
        assert meter.source == "modelled" and "load" in meter.note
        assert (meter.read() is None) == (broken == "later")
    else:
        assert meter.read() is None
    assert meter.stop() is None
    assert "codecarbon failed" in meter.note


def fake(name: str, broken: str) -> Any:
    """codecarbon with one broken part; ``silent`` swallows its exception, as the real one does."""
    if broken == "import":
        raise ImportError(name)

    class Tracker:
        def __init__(self, output_handlers: list[Any], **settings: Any) -> None:
            self._hardware, self.handlers, self.reads = [CPU("cpu_load")], output_handlers, 0

        def start(self) -> None:
            assert broken != "start"

        def flush(self) -> None:
            self.reads += 1
            assert broken != "flush" and (broken != "later" or self.reads < 2)
            if broken != "silent":
                self.handlers[0].out(SimpleNamespace(energy_consumed=self.reads), None)

        def stop(self) -> None:
            assert broken != "stop"

    return SimpleNamespace(OfflineEmissionsTracker=Tracker, BaseOutput=object)


class CPU:
    def __init__(self, mode: str) -> None:
        self._mode = mode


class GPU: ...


class RAM: ...


@pytest.mark.parametrize(
    ("hardware", "source", "words"),
    [
        ([RAM(), CPU("intel_rapl"), GPU()], "measured", "RAPL"),
        ([RAM(), CPU("intel_rapl")], "measured", "RAPL"),
        ([RAM(), CPU("cpu_load"), GPU()], "modelled", "GPUs by their own"),
        ([RAM(), CPU("constant")], "modelled", "TDP"),
        ([RAM()], "modelled", "no processor"),
    ],
)
def test_measured_means_every_processor_has_a_counter(hardware: list[Any], source: str, words: str) -> None:
    found, note = energy._describe(hardware)
    assert found == source and words in note and "memory modelled" in note
