"""Scoring over HTTP beside the raw session loop, in one run: `make bench-scoring TEXT=lines.txt`.

The raw loop runs planned batches one after the other, with the same rows and head outputs, on the
same number of threads: no tokenising, no HTTP, no scheduling. The second raw loop is what the
server does with its sessions: one for each thread, side by side. Rounds of all alternate, so that a
noisy machine disturbs all alike, and the medians of the rounds' ratios are quoted. The client is
aiohttp, on the same cores; requests of few tokens are asked by `wrk` too, where it is installed.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from app.engine.planner import plan
from app.engine.policy import Budget
from app.engine.runtime.session import Session, open_sessions
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence
from app.engine.turns import CallerQueue
from app.settings import Settings
from model.core import bundle, byte_products
from model.core.flat_batch import FlatBatch
from model.core.graph import Precision
from model.core.processor import machine
from model.core.tokenizer import Tokenizer
from model.data import text_files
from tests.bench.figures import Figures
from tests.bench.served import closed_loop, metrics, serving
from tests.bench.wrk import WRK, requests_per_second

CLIENTS = 32
SHORT_TOKENS = 10
SECONDS = 3
"""That `wrk` asks for, in each round."""


@dataclass(frozen=True, slots=True)
class Workload:
    """So many texts a round, in requests of so many; all of a line's text, or its first tokens.

    top: alternatives that are listed for each token; the raw loops list none. wrk: whether `wrk`
    asks, for SECONDS, instead of aiohttp.
    """

    name: str
    lines: int
    texts: int
    short: bool = False
    top: int = 0
    wrk: bool = False


WORKLOADS = (
    Workload("one line a request", 400, 1),
    Workload("64 lines a request", 960, 64),
    Workload("one line a request, 5 alternatives a token", 400, 1, top=5),
    Workload(f"one text of {SHORT_TOKENS} tokens a request", 2000, 1, short=True),
    Workload(f"one text of {SHORT_TOKENS} tokens a request, wrk", 2000, 1, short=True, wrk=True),
)


def main() -> None:
    """Prints a Markdown table for each precision of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    loaded = introduced(options.bundle)
    for figures in run(loaded, read_lines(options.text), options.rounds):
        print(figures.markdown())


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of texts is told."""
    parser.add_argument("text", type=Path, help="a text file; its lines that are not blank")
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of a bundle in rounds is told."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)


def introduced(path: Path) -> bundle.Bundle:
    """A bundle, loaded; prints what every table is of: machine, runtime and bundle."""
    loaded = bundle.load(path)
    print(f"{machine()}; onnxruntime {ort.__version__}")
    print(f"bundle: {loaded.config.name} {loaded.fingerprint}\n")
    return loaded


def read_lines(path: Path) -> list[str]:
    """Lines that are not blank."""
    return [line.strip() for line in text_files.lines(path) if line.strip()]


def precisions(loaded: bundle.Bundle) -> list[Precision]:
    """What a bundle can be run in on this processor."""
    return ["float32"] if byte_products.graph_int8(loaded) is None else ["float32", "int8"]


def run(loaded: bundle.Bundle, lines: list[str], rounds: int) -> Iterator[Figures]:
    """The figures of each precision."""
    for precision in precisions(loaded):
        figures = Figures(f"Scoring over HTTP, {precision}, {CLIENTS} clients, {rounds} rounds")
        ((whole, parts),) = open_sessions(loaded, "cpu", 0, 0, 64, precision)
        with serving(loaded.folder, precision) as url:
            for workload in WORKLOADS:
                if workload.wrk and not WRK:
                    continue
                _measure(loaded, lines, workload, url, (whole, parts), rounds, figures)
        yield figures


def _measure(
    loaded: bundle.Bundle,
    lines: list[str],
    workload: Workload,
    url: str,
    sessions: tuple[Session, list[Session]],
    rounds: int,
    figures: Figures,
) -> None:
    whole, parts = sessions
    rng = np.random.default_rng(0)
    if workload.short:
        lines = shortened(loaded.tokenizer, lines)
    before: dict[str, float] = {}
    for number in range(rounds + 1):
        places = rng.choice(len(lines), workload.lines, replace=len(lines) < workload.lines)
        chosen = [lines[i] for i in places]
        batches, tokens = planned(loaded, chosen, whole.multiple, workload.texts)
        raw = tokens / run_raw(whole, batches)
        beside = tokens / run_beside(parts or [whole], batches)
        bodies: list[dict[str, object]] = [
            {"input": chosen[i : i + workload.texts], "top_logprobs": workload.top}
            for i in range(0, len(chosen), workload.texts)
        ]
        if workload.wrk:
            asked = requests_per_second(url, "/v1/score", bodies, CLIENTS, SECONDS)
            served = asked * tokens / len(bodies)
        else:
            served = tokens / closed_loop(url, bodies, CLIENTS)
        if not number:  # the warm-up
            before = metrics(url)
            continue
        figures.add(f"{workload.name}: served / raw loop", served / raw)
        figures.add(f"{workload.name}: served / raw loops side by side", served / beside)
        figures.add(f"{workload.name}: served, tokens/s", served)
        figures.add(f"{workload.name}: raw loop, tokens/s", raw)
    after = metrics(url)
    count = _delta(before, after, "convlm_batch_rows_count")
    rows = _delta(before, after, "convlm_batch_rows_sum")
    figures.add(f"{workload.name}: rows a batch", rows / count)


def shortened(tokenizer: Tokenizer, lines: list[str]) -> list[str]:
    """The text of the first SHORT_TOKENS tokens of each line that has as many."""
    cuts = ((line, tokenizer.encode(line).cuts) for line in lines)
    return [line[: cut[SHORT_TOKENS - 1]] for line, cut in cuts if len(cut) >= SHORT_TOKENS]


def planned(
    loaded: bundle.Bundle, lines: list[str], multiple: int, texts: int = 64
) -> tuple[list[FlatBatch], int]:
    """The batches of a scheduler that has all lines at once, in requests of `texts`, and the tokens
    they score."""
    config = loaded.config
    settings = Settings()
    scheduler = Scheduler(
        config.model.receptive_field,
        Budget(settings.max_batch_tokens, settings.max_stream_batch_tokens),
        64,
    )
    sequences = [
        Sequence(np.concatenate([[config.start_id], encoded.ids]).astype(np.int64))
        for encoded in loaded.tokenizer.encode_many(lines)
    ]
    for first in range(0, len(sequences), texts):
        scheduler.add(CallerQueue(), sequences[first : first + texts])
    batches = []
    while picked := scheduler.pick():
        batches.append(plan([a.piece for a in picked], config.model.taps, multiple))
        scheduler.finish(picked)
    return batches, sum(len(s.tokens) - 1 for s in sequences)


def run_raw(session: Session, batches: list[FlatBatch]) -> float:
    """Seconds that batches take, one after the other."""
    began = time.perf_counter()
    for batch in batches:
        session.run(batch)
    return time.perf_counter() - began


def run_beside(sessions: list[Session], batches: list[FlatBatch]) -> float:
    """Seconds that batches take on several sessions, each running the next that is left.

    A batch may read a state before it is written: the work is the same, the results are not.
    """
    left = iter(batches)
    turn = threading.Lock()

    def work(session: Session) -> None:
        while True:
            with turn:
                batch = next(left, None)
            if batch is None:
                return
            session.run(batch)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _delta(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


if __name__ == "__main__":
    main()
