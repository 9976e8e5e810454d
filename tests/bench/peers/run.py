"""convlm beside generic servers that run the same model: `make bench-peers TEXT=lines.txt`.

The peers run its padded float32 graph on the same number of threads, each at its fastest setting,
which a search finds first. Then all servers are up, those that are not asked paused, and rounds of
the same lines alternate between them. A ratio is of one round; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from onnxscript import ir

from app.settings import Settings
from model.core import bundle
from model.data import text_files
from model.training import restore
from tests.bench.peers import environments, table
from tests.bench.peers.graph import PaddedGraph
from tests.bench.peers.load import Answer, Load, Server, own_server, peer_server
from tests.bench.peers.scorer import Setting
from tests.bench.peers.search import best_settings
from tests.bench.peers.servers import PEERS, Peer
from tests.bench.scoring import precisions

_TOLERANCE = 1e-4
"""Nats a token by which an answer may differ from convlm's in float32."""
_WARM_UP_LINES = 64


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; each line that is not blank is sent")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=400, help="lines of a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32])
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names)
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    lines = [line.strip() for line in text_files.lines(options.text) if line.strip()]
    if len(lines) < options.lines:
        parser.error(f"{options.text} has {len(lines)} lines, fewer than --lines")
    rng = np.random.default_rng(0)
    rounds = [
        Load([lines[i] for i in rng.choice(len(lines), options.lines, replace=False)], clients)
        for clients in [options.clients] * options.rounds
    ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers end too
    for name in ("client", *(p.environment for p in PEERS if p.name in options.peers)):
        if name:
            environments.python(name)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "padded.onnx"
        ir.save(PaddedGraph(restore.load(options.bundle)).build(), graph)
        start = Setting(options.bundle.absolute(), graph, 0, 1, options.threads, 1)
        servers = _measured(options, _chosen(options, start, rounds[0]), rounds)
    loaded = bundle.load(options.bundle)
    facts = table.facts(options, f"{loaded.config.name} {loaded.fingerprint}")
    table.show(facts, servers)
    if options.json:
        table.save(facts, servers, options.json)


def _chosen(options: argparse.Namespace, start: Setting, load: Load) -> list[tuple[Peer, Setting]]:
    """The settings that are measured; half a round each decides."""
    half = Load(load.texts[: len(load.texts) // 2], load.clients)
    warm_up = Load(load.texts[:_WARM_UP_LINES], load.clients)
    return [
        (peer, setting)
        for peer in PEERS
        if peer.name in options.peers
        for setting in best_settings(peer, start, options.batches, warm_up, half)
    ]


def _measured(
    options: argparse.Namespace, chosen: list[tuple[Peer, Setting]], rounds: list[Load]
) -> list[Server]:
    """convlm in float32 and in 8 bits, then the peers."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(own_server(options.bundle, precision, options.threads))
            for precision in precisions(bundle.load(options.bundle))
        ]
        servers += [stack.enter_context(peer_server(*pair)) for pair in chosen]
        warm_up = Load(rounds[0].texts[:_WARM_UP_LINES], options.clients)
        expected = servers[0].send(warm_up)[2]
        for server in servers[1:]:
            answers = server.send(warm_up)[2]
            if server.how != "int8":
                _check(server, answers, expected)
        for load in rounds:
            for server in servers:
                rate, latencies, _ = server.send(load)
                server.rates.append(rate)
                server.latencies += latencies
    return servers


def _check(server: Server, answers: list[Answer], expected: list[Answer]) -> None:
    for own, other in zip(expected, answers, strict=True):
        difference = abs(own["logprob_sum"] - other["logprob_sum"])
        allowed = _TOLERANCE * own["token_count"]
        if own["token_count"] != other["token_count"] or not difference <= allowed:
            raise SystemExit(f"{server.name} computes something else: {other} instead of {own}")


if __name__ == "__main__":
    main()
