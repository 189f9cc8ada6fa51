import platform
import subprocess
import sys

import pytest

from auxin.training.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from auxin.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
sizes = (9_000_000, 40_000_000, 5_000_000)  # floats: beyond glibc's largest threshold, so always mapped by default
for _ in range(3):
    blocks = [torch.ones(size) for size in sizes]
    del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    blocks = [torch.ones(size) for size in sizes]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    assert faults("keep") < 0.2 * faults("leave")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
