"""Memory that is kept for the next who asks."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import resource, threading
import numpy as np
from model.allocator import keep_freed_memory

keep_freed_memory()

def fill():
    np.ones(64 << 17)  # 64 MiB, in another thread as gradients are

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for work in (fill, lambda: None):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, *later = [faults() for _ in range(4)]
print(first, *later)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_freed_block_is_given_out_again_without_asking_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True
    )
    first, *later = (int(number) for number in done.stdout.split())
    assert max(later) < first / 10
