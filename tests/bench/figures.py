"""Figures of several rounds: a median with its range, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figures:
    """Values by name, one a round; the first round is the warm-up and is left to the caller."""

    title: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, *values: float) -> None:
        """One more round's value, or several."""
        self.values.setdefault(name, []).extend(values)

    def markdown(self) -> str:
        """A table with a title."""
        rows = [f"**{self.title}**", "", "| figure | median | min | max |"]
        rows.append("| --- | --: | --: | --: |")
        for name, values in self.values.items():
            middle = statistics.median(values)
            numbers = " | ".join(_number(v) for v in (middle, min(values), max(values)))
            rows.append(f"| {name} | {numbers} |")
        return "\n".join(rows) + "\n"

    def record(self) -> dict[str, object]:
        """All values, for JSON."""
        return {"title": self.title, "values": self.values}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
