"""Chooses which of a bundle's graphs to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.errors import EngineError
from model.core import byte_products
from model.core.bundle import MAX_INT8_PERPLEXITY_RATIO, Bundle
from model.core.graph import Precision

WantedPrecision = Literal["auto", "float32", "float16", "int8"]
MAX_PERPLEXITY_RATIO = MAX_INT8_PERPLEXITY_RATIO
"""Largest perplexity ratio at which `auto` chooses 8 bits."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """A precision and why it was chosen."""

    precision: Precision
    reason: str


def choose_precision(
    wanted: WantedPrecision, bundle: Bundle, device: Literal["cpu", "cuda"]
) -> PrecisionChoice:
    """The precision to compute in. Raises EngineError if the wanted one is not available."""
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
    if byte_products.graph_int8(bundle) is None:
        return (
            "this processor has no VNNI instructions, and the bundle's graph in 8 bits needs them; "
            "export it again"
        )
    return None
