"""Short prompts that wait for a row and a slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

from app.engine.sequence import Sequence
from app.engine.states import States
from app.engine.turns import CallerQueue


class Prompts:
    """Prompts of one kind, bulk or not, by callers in the order of their coming.

    halo: R - 1. Prompts that can have no slot are not looked at, however many they are.
    """

    def __init__(self, halo: int, states: States) -> None:
        self._halo, self._states = halo, states
        self._callers: deque[CallerQueue] = deque()
        self._changed: dict[CallerQueue, None] = {}
        self._rows = 0
        """Rows of all prompts, those of their halos among them."""

    def __bool__(self) -> bool:
        return bool(self._callers)

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(caller.prompts for caller in self._callers)

    def add(self, caller: CallerQueue, prompt: Sequence) -> None:
        """Queues a prompt after the others of its caller."""
        if not caller.prompts:
            self._callers.append(caller)
        caller.prompts.append(prompt)
        rows = prompt.rows_due(self._halo)
        caller.prompt_rows += rows
        self._rows += rows

    def changed(self, prompt: Sequence) -> None:
        """Notes that a prompt, if it is one of these, runs now or is closed."""
        if prompt.caller is not None and prompt.caller.prompts:
            self._changed[prompt.caller] = None

    def forget(self) -> None:
        """Removes those that run or are closed."""
        empty = False
        for caller in self._changed:
            caller.prompts = deque(s for s in caller.prompts if not (s.running or s.closed))
            self._rows -= caller.prompt_rows
            caller.prompt_rows = sum(prompt.rows_due(self._halo) for prompt in caller.prompts)
            self._rows += caller.prompt_rows
            empty = empty or not caller.prompts
        self._changed.clear()
        if empty:
            self._callers = deque(caller for caller in self._callers if caller.prompts)

    def ready(self) -> Iterator[Sequence]:
        """The prompts that may start now.

        Those that are started take a slot before the next is looked at, and are forgotten after.
        """
        for caller in self._callers:
            if not self._states.free:
                break
            for prompt in caller.prompts:
                if not self._states.has_one_for(caller):
                    break
                if not prompt.waits_for_parent:
                    yield prompt

    @property
    def blocked_rows(self) -> int:
        """Rows of the prompts that wait for a slot."""
        if not self._states.free:
            return self._rows
        rows = 0
        for caller in self._callers:
            if self._states.has_one_for(caller):
                break  # those after it are not looked at, since they may be many
            rows += caller.prompt_rows
        return rows
