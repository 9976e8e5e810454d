"""The families of attacks: what each sends, how much, and to which server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from tests.bench.hostile import crowds, mutations, protocols
from tests.bench.hostile.bodies import LONG, MANY, Kind
from tests.bench.hostile.dear_bodies import BODIES, BULK, TEXTS, WORST, framed
from tests.bench.hostile.wire import Part, Tally, exchange

_OPEN_AT_ONCE = 60
_FEW_DESCRIPTORS = 1024
_OPENING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Attack:
    """What is attacked, and how much. Seconds: how long clients stay; each is above the server's
    own limit, so that those who are still there were let stay.
    """

    port: int
    held: crowds.Held
    crowd: int = 500
    mutations: int = 10_000
    seed: int = 1
    patience: float = 60.0
    work_seconds: float = 10.0
    head_seconds: float = 20.0
    body_seconds: float = 45.0
    reader_seconds: float = 90.0
    silent_seconds: float = 20.0

    async def each(self, kinds: list[Kind]) -> Tally:
        """Bodies one after the other."""
        tally = Tally()
        for kind in kinds:
            patience = self.work_seconds if kind.work else self.patience
            received = await exchange(self.port, [kind.request()], patience=patience)
            tally.add(kind.name, received, may_wait=kind.work)
        return tally

    async def at_once(self, kinds: list[Kind]) -> Tally:
        """Bodies of which all but the last byte is sent before any of them is ended."""
        tally, gate = Tally(), asyncio.Event()
        left = _OPEN_AT_ONCE

        def parts(raw: bytes) -> Iterator[Part]:
            nonlocal left
            yield raw[:-1]
            left -= 1
            if not left:
                gate.set()
            yield gate
            yield raw[-1:]

        async def one(kind: Kind, raw: bytes) -> None:
            received = await exchange(self.port, parts(raw), patience=2 * self.patience)
            tally.add(kind.name, received, may_wait=kind.work)

        requests = {kind.name: kind.request() for kind in kinds}
        some = itertools.islice(itertools.cycle(kinds), _OPEN_AT_ONCE)
        clients = asyncio.gather(*[one(kind, requests[kind.name]) for kind in some])
        asyncio.get_running_loop().call_later(_OPENING_SECONDS, gate.set)  # some were refused
        await clients
        return tally

    async def wrong_lengths(self) -> Tally:
        """Bodies whose length is wrong, or whose packets are tiny."""
        tally = Tally()
        for name, parts in framed().items():
            tally.add(name, await exchange(self.port, parts, patience=self.patience))
        return tally


@dataclass(frozen=True, slots=True)
class Family:
    """Attacks of one kind. descriptors: the server's limit, None for the machine's."""

    name: str
    run: Callable[[Attack], Awaitable[Tally]]
    descriptors: int | None = None
    worst: bool = False
    """Whether it is part of a short run."""


async def _nothing(_: Attack) -> Tally:
    await asyncio.sleep(15)
    return Tally()


FAMILIES = [
    Family("idle", _nothing, worst=True),
    Family("bodies that stop a server", lambda a: a.each(WORST), worst=True),
    Family("bodies of many values", lambda a: a.each(MANY)),
    Family("bodies of few values", lambda a: a.each(LONG)),
    Family("bodies of dear texts", lambda a: a.each(TEXTS)),
    Family("bodies of lines", lambda a: a.each(BULK)),
    Family("bodies of wrong lengths", lambda a: a.wrong_lengths()),
    Family("60 open, the worst", lambda a: a.at_once(WORST), worst=True),
    Family("60 open, of all kinds", lambda a: a.at_once(BODIES[:: len(BODIES) // 35])),
    Family("slow heads", lambda a: crowds.slow_heads(a.port, a.crowd, a.head_seconds), worst=True),
    Family("slow bodies", lambda a: crowds.slow_bodies(a.port, a.crowd, a.body_seconds)),
    Family("missing bodies", lambda a: crowds.missing_bodies(a.port, a.crowd, a.body_seconds)),
    Family(
        "slow readers", lambda a: crowds.slow_readers(a.port, a.crowd, a.reader_seconds, a.held)
    ),
    Family("silent connections", lambda a: crowds.silent(a.port, a.crowd, a.silent_seconds)),
    Family("endless heads", lambda a: crowds.endless_heads(a.port, a.patience), worst=True),
    Family("floods", lambda a: protocols.send_floods(a.port, a.patience)),
    Family("half-closed", lambda a: protocols.send_half_closed(a.port, a.patience)),
    Family("resets", lambda a: protocols.send_resets(a.port, a.mutations // 5, a.seed)),
    Family(
        "expectations",
        lambda a: protocols.send_expectations(a.port, a.crowd, a.body_seconds),
    ),
    Family("odd and smuggled", lambda a: protocols.send_odd(a.port, a.patience)),
    Family("mutations", lambda a: mutations.send(a.port, a.mutations, a.seed), worst=True),
    Family("cut off", lambda a: mutations.send_unfinished(a.port, a.mutations // 10, a.seed)),
    Family(
        "1,300 silent, 1,024 descriptors",
        lambda a: crowds.silent(a.port, 1300, a.silent_seconds),
        descriptors=_FEW_DESCRIPTORS,
        worst=True,
    ),
]
