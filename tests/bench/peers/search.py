"""The setting at which a generic server is fastest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from tests.bench.peers.load import Load, peer_server, words
from tests.bench.peers.scorer import Setting
from tests.bench.peers.servers import Peer

_TRIES = 2
"""Bursts at each setting; the best counts."""


def best_settings(
    peer: Peer, start: Setting, sizes: Sequence[int], warm_up: Load, load: Load
) -> list[Setting]:
    """The best setting for single texts, and the best for batches if the server makes any.

    start: as many workers of one thread as there are threads. Each size is tried so, and the best
    one with one worker of all threads too.
    """
    rates: dict[Setting, float] = {}

    def try_out(setting: Setting) -> None:
        with peer_server(peer, setting) as server:
            server.send(warm_up)
            rates[setting] = max(server.send(load)[0] for _ in range(_TRIES))
        print(
            f"{peer.name}, {words(peer, setting)}: {rates[setting]:.0f} tokens/s", file=sys.stderr
        )

    def best(group: Sequence[int]) -> Setting:
        return max((s for s in rates if s.batch in group), key=rates.__getitem__)

    found = []
    batched = [size for size in sizes if size > 1] if peer.batches else []
    for group in ([1], batched):
        if not group:
            continue
        for size in group:
            try_out(replace(start, batch=size))
        leader = best(group)
        if leader.workers > 1:
            try_out(replace(leader, workers=1, threads=leader.workers * leader.threads))
        found.append(best(group))
    return found
