"""The server's processor time of a short request: `make bench-cost TEXT=lines.txt`.

Texts of 10 tokens are scored, one a request, by clients in a closed loop. With `--other` the server
of another checkout is asked too: both are started, and asked in turn.
"""

from __future__ import annotations

import argparse
import itertools
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from tests.bench.figures import Figures
from tests.bench.open_loop import closed_loop, request
from tests.bench.scoring import (
    CLIENTS,
    SHORT_TOKENS,
    add_options,
    introduced,
    read_lines,
    shortened,
)
from tests.bench.served import Running, running


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--other", type=Path, help="another checkout, whose server is asked too")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    options = parser.parse_args()
    loaded = introduced(options.bundle)
    texts = shortened(loaded.tokenizer, read_lines(options.text))
    settings = {"CONVLM_BUNDLE": str(options.bundle.resolve())}
    figures = Figures(
        f"A text of {SHORT_TOKENS} tokens, {CLIENTS} clients, {options.rounds} rounds"
    )
    with ExitStack() as stack:
        servers = {"this": stack.enter_context(running(settings))}
        if options.other:
            servers["other"] = stack.enter_context(running(settings, options.other))
        for number in range(options.rounds + 1):
            costs = {}
            order = list(servers) if number % 2 else list(servers)[::-1]
            for name in order:
                rate, costs[name] = _cost(servers[name], texts, options.seconds)
                if number:  # after the warm-up
                    figures.add(f"{name}: requests/s", rate)
                    figures.add(f"{name}: ms of processor time a request", 1e3 * costs[name])
            if number and options.other:
                figures.add("this / other, processor time", costs["this"] / costs["other"])
    print(figures.markdown())


def _cost(server: Running, texts: list[str], seconds: float) -> tuple[float, float]:
    """Requests a second, and the server's seconds of processor time a request."""
    address = urlsplit(server.url)
    bodies = itertools.cycle([request(address, "/v1/score", {"input": text}) for text in texts])
    before = server.cpu_seconds
    answered, took = uvloop.run(closed_loop(address, lambda: next(bodies), CLIENTS, seconds))
    return answered / took, (server.cpu_seconds - before) / answered


if __name__ == "__main__":
    main()
