"""Memory that is freed stays with the process: training on a CPU otherwise pays for page faults in every step."""

from __future__ import annotations

import ctypes
import platform

# From glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed instead of giving it back to the kernel.

    By default large blocks, such as activations, are mapped when they are allocated and unmapped when they are freed,
    so every training step touches fresh pages again. The setting holds for the rest of the process, which from then on
    occupies what it needed at its peak. No number changes. Measured by ``benchmarks/cpu_step.py``.

    Returns:
        Whether it was done: not where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
