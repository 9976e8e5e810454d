"""Which of a bundle's graphs to run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import EngineError
from model.bundle import MAX_INT8_PERPLEXITY_RATIO, Bundle
from model.graph import Precision

Wanted = Literal["auto", "float32", "float16", "int8"]
MAX_PERPLEXITY_RATIO = MAX_INT8_PERPLEXITY_RATIO
"""What `auto` accepts as the price of 8 bits."""
_ALWAYS_EXACT = frozenset({"aarch64", "arm64"})
"""Machines whose sums of byte products never saturate."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """A precision and why it was taken."""

    precision: Precision
    reason: str


def choose_precision(
    wanted: Wanted, bundle: Bundle, device: Literal["cpu", "cuda"]
) -> PrecisionChoice:
    """What to compute in. Raises EngineError when what is demanded cannot be had."""
    if wanted == "float16" and bundle.graph_float16 is None:
        raise EngineError(
            "the setting precision asks for float16, but the bundle has no graph in float16; "
            "export it again"
        )
    if wanted in ("float32", "float16"):
        return PrecisionChoice(wanted, "the setting asks for it")
    problem = _problem(bundle, device)
    if problem is None and wanted == "auto":
        ratio = bundle.config.int8_perplexity_ratio
        if ratio is None or ratio > MAX_PERPLEXITY_RATIO:
            problem = f"the bundle states a perplexity in 8 bits of {ratio} times that in float32"
    if problem is None:
        return PrecisionChoice("int8", "the fastest that the bundle and the processor allow")
    if wanted == "int8":
        raise EngineError(f"the setting precision asks for int8, but {problem}")
    return PrecisionChoice("float32", problem)


def _problem(bundle: Bundle, device: Literal["cpu", "cuda"]) -> str | None:
    """Why 8 bits cannot be used."""
    if bundle.graph_int8 is None:
        return "the bundle has no graph in 8 bits"
    if device == "cuda":
        return "it is for the CPU only"
    if platform.machine() not in _ALWAYS_EXACT and not _adds_byte_products():
        # without VNNI two products are added in 16 bits, which overflow
        return "this processor has no VNNI instructions"
    return None


def _adds_byte_products() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "avx512_vnni" in flags or "avx_vnni" in flags
