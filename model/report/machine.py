"""Describes the machine of a measurement."""

from __future__ import annotations

import os

from model.core.processor import processor_name


def machine() -> str:
    """Processor and cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"Machine: {processor_name()}, {usable} core{'s' if usable != 1 else ''} used"
