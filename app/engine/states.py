"""The slots of the pool: which are free, and which sequences still need theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from app.engine.sequence import Generation, Sequence
from model.core.graph import SCRATCH_SLOT

if TYPE_CHECKING:
    from app.engine.turns import CallerQueue


class States:
    """Gives slots to sequences. slots: states that the pool holds besides the scratch slot."""

    def __init__(self, slots: int) -> None:
        self.free = [slot for slot in range(slots, -1, -1) if slot != SCRATCH_SLOT]

    def has_one_for(self, caller: CallerQueue | None) -> bool:
        """Whether a slot is free for a stream of a caller.

        A caller's streams hold at most as many slots as are free, so that others find some: half
        of them while it is alone.
        """
        return len(self.free) > (0 if caller is None else caller.states)

    def give(self, sequence: Sequence) -> None:
        """Gives a sequence without a slot one that is free, if there is one for it."""
        caller = sequence.caller if isinstance(sequence.follow, Generation) else None
        if sequence.slot is None and self.has_one_for(caller):
            sequence.hold(self.free.pop())

    def release(self, sequence: Sequence) -> None:
        """Takes a sequence's slot back."""
        if sequence.slot is not None:
            self.free.append(sequence.slot)  # the next holder writes before it reads
            sequence.hold(None)

    def end(self, sequence: Sequence) -> None:
        """Frees a closed sequence's slot unless another sequence still needs its state."""
        self.leave_parent(sequence)
        if not sequence.children or sequence.computed < sequence.rows:
            self.release(sequence)

    def leave_parent(self, sequence: Sequence) -> None:
        """Notes that a sequence has started from its parent's state, or never will."""
        parent, sequence.parent = sequence.parent, None
        if parent is not None:
            parent.children -= 1
            if parent.closed and not parent.running and not parent.children:
                self.release(parent)

    def release_shared(self, prompts: Iterable[Sequence]) -> None:
        """Frees the slots of shared prompts when they hold all: their choices compute halos."""
        for sequence in prompts:
            parent = sequence.parent
            if parent is not None and not sequence.waits_for_parent and not parent.readers:
                self.release(parent)
