"""The comparison as a Markdown table and as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import onnxruntime as ort

from model.core.processor import machine
from tests.bench.peers.load import Server


def facts(options: argparse.Namespace, bundle: str) -> dict[str, object]:
    """What the figures depend on."""
    return {
        "machine": machine(),
        "onnxruntime": ort.__version__,
        "bundle": bundle,
        "clients": options.clients,
        "rounds": options.rounds,
        "lines": options.lines,
        "threads": options.threads,
    }


def show(facts: dict[str, object], servers: list[Server]) -> None:
    """Prints the table. servers: convlm in float32 and in 8 bits first."""
    float32, int8, *_ = servers
    print(f"{facts['machine']}; onnxruntime {facts['onnxruntime']}; bundle: {facts['bundle']}")
    print(
        f"{facts['clients']} clients, {facts['rounds']} rounds of {facts['lines']} lines, "
        f"{facts['threads']} threads a server"
    )
    print("| server | setting | tokens/s | convlm float32 / it | convlm int8 / it | p50 | p99 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for server in servers:
        cells = [
            server.name,
            server.how,
            f"{statistics.median(server.rates):,.0f}",
            _spread(_ratios(float32, server)),
            _spread(_ratios(int8, server)),
            *(f"{1000 * _quantile(server, q):.0f} ms" for q in (0.5, 0.99)),
        ]
        print(f"| {' | '.join(cells)} |")


def save(facts: dict[str, object], servers: list[Server], path: Path) -> None:
    """Writes the same figures, those of each round too."""
    rows = [
        {
            "server": server.name,
            "setting": server.how,
            "tokens_per_second": server.rates,
            "convlm_float32_ratio": _ratios(servers[0], server),
            "convlm_int8_ratio": _ratios(servers[1], server),
            "p50_seconds": _quantile(server, 0.5),
            "p99_seconds": _quantile(server, 0.99),
        }
        for server in servers
    ]
    path.write_text(json.dumps({**facts, "servers": rows}, indent=2) + "\n")


def _ratios(own: Server, other: Server) -> list[float]:
    return [a / b for a, b in zip(own.rates, other.rates, strict=True)]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _quantile(server: Server, share: float) -> float:
    return float(np.quantile(server.latencies, share))
