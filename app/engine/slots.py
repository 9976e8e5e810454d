"""Which slots of the state pool are free. The arrays themselves are the session's."""

from __future__ import annotations

from model.core.graph import SCRATCH_SLOT


class Slots:
    """`count` slots for states, besides the scratch slot."""

    def __init__(self, count: int) -> None:
        self._free = [slot for slot in range(count, -1, -1) if slot != SCRATCH_SLOT]

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self) -> int | None:
        """A slot, or None if all are taken."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Frees a slot. Its content stays: the next holder writes before it reads."""
        self._free.append(slot)
