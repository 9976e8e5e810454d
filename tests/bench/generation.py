"""Generation over HTTP beside the raw decode loop, in one run: `make bench-generation`.

The raw loop runs a batch of one row again and again, as a stream's step does: no planning, no
sampling, no HTTP. It has the whole distribution, or of an adaptive softmax the head alone, as most
steps of a stream have. Served are one stream and many at once, unstreamed, and one stream behind a
short and behind a long prompt. Rounds alternate; medians of the rounds' ratios are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator

import aiohttp
import numpy as np

from app.engine.planner import Step, plan
from app.engine.runtime.session import Session
from model.core import bundle
from model.core.flat_batch import TailTerms
from tests.bench.figures import Figures
from tests.bench.scoring import add_run_options, introduced, precisions
from tests.bench.served import serving, session

TOKENS = 200
SHORT, LONG = 100, 10_000
"""Tokens of the two prompts."""
TURNS = 5
"""How often a stream behind each is timed in a round, in turn; their medians are compared."""


def main() -> None:
    """Prints a Markdown table for each precision of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    add_run_options(parser)
    options = parser.parse_args()
    loaded = introduced(options.bundle)
    for figures in run(loaded, options.rounds, options.streams):
        print(figures.markdown())


def run(loaded: bundle.Bundle, rounds: int, streams: int = 64) -> Iterator[Figures]:
    """The figures of each precision."""
    for precision in precisions(loaded):
        figures = Figures(
            f"Generation, {precision}, {TOKENS} tokens a stream, temperature 1, {rounds} rounds"
        )
        session = Session(loaded, "cpu", 0, 4, precision)
        with serving(loaded.folder, precision) as url:
            for number in range(rounds + 1):
                raw, head = _raw(session), _raw(session, head=True)
                one = asyncio.run(_served(url, 1, number, "The house was"))
                many = asyncio.run(_served(url, streams, number, "The house was"))
                ids = np.random.default_rng(number).integers(2, loaded.tokenizer.size, LONG)
                prompts = {"near": ids[:SHORT].tolist(), "far": ids.tolist()}
                rates: dict[str, list[float]] = {place: [] for place in prompts}
                for place in TURNS * list(prompts):
                    rates[place].append(asyncio.run(_served(url, 1, number, prompts[place])))
                near, far = (float(np.median(rates[place])) for place in prompts)
                if not number:  # the warm-up
                    continue
                figures.add("one stream / raw decode loop", one / raw)
                figures.add("one stream / raw decode loop, head alone", one / head)
                figures.add(f"{streams} streams / one stream", many / one)
                figures.add(f"one stream behind {LONG:,} tokens / behind {SHORT}", far / near)
                figures.add("raw decode loop, tokens/s", raw)
                figures.add("raw decode loop, head alone, tokens/s", head)
                figures.add("one stream, tokens/s", one)
                figures.add(f"{streams} streams, tokens/s", many)
        yield figures


def _raw(session: Session, *, head: bool = False) -> float:
    """Steps a second. head: of an adaptive softmax, without the tails."""
    none = TailTerms.always(0, session.tail_count).padded(1)
    batch = plan([Step(5, 1, 0)], session.taps, session.multiple, none if head else None)
    began = time.perf_counter()
    for _ in range(2 * TOKENS):
        session.run(batch)
    return 2 * TOKENS / (time.perf_counter() - began)


async def _served(url: str, streams: int, seed: int, prompt: str | list[int]) -> float:
    """Tokens a second of all streams together, from the first tokens on; all end together."""

    async def generate(http: aiohttp.ClientSession, number: int, tokens: int) -> int:
        body = {"prompt": prompt, "max_tokens": tokens, "seed": 1000 * seed + number}
        body["ignore_eos"] = True
        async with http.post("/v1/completions", json=body, raise_for_status=True) as answer:
            return int((await answer.json())["usage"]["completion_tokens"])

    async with session(url, streams) as http:
        seconds, counts = [], []
        for tokens in (1, TOKENS):
            began = time.perf_counter()
            made = await asyncio.gather(*(generate(http, n, tokens) for n in range(streams)))
            seconds.append(time.perf_counter() - began)
            counts.append(sum(made))
        return (counts[1] - counts[0]) / (seconds[1] - seconds[0])


if __name__ == "__main__":
    main()
