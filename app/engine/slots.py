"""Slots of the state pool: free or taken. The arrays themselves live in the session."""

from __future__ import annotations

from model.core.graph import SCRATCH_SLOT


class Slots:
    """`count` slots for states, besides the scratch slot."""

    def __init__(self, count: int) -> None:
        self._free = [slot for slot in range(count, -1, -1) if slot != SCRATCH_SLOT]

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def take(self) -> int | None:
        """A slot, or None when all are taken."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Frees a slot; its content needs no clearing, a new holder writes before it reads."""
        self._free.append(slot)
