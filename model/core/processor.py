"""The processor's name, and the machine of a measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """As the Linux kernel gives it, or else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """Processor and cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"Machine: {processor_name()}, {usable} core{'s' if usable != 1 else ''} used"
