"""The bulk endpoint beside the raw session loop: `make bench-bulk TEXT=lines.txt`.

Rounds of the raw loop and of NDJSON through `POST /v1/score/stream` alternate, and a round's ratio
is that to the mean of the raw loops before and behind it. With --megabytes there is no raw loop:
so much is sent, and what counts is the memory of server and client.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from app.client.async_client import AsyncClient
from app.engine.runtime.session import Session
from app.settings import Settings
from model.core import bundle
from model.data import text_files
from tests.bench.scoring import planned, run_raw
from tests.bench.served import resident, serving

_SAMPLE_SECONDS = 1.0


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; each line that is not blank is sent")
    parser.add_argument("--seconds", type=float, default=120, help="of bulk scoring, all rounds")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--raw-lines", type=int, default=400, help="lines of a raw loop")
    parser.add_argument("--megabytes", type=float, help="send so much, and watch the memory")
    parser.add_argument("--detail", choices=["totals", "tokens"], default="totals")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--tiny", action="store_true", help="a tiny random bundle instead")
    parser.add_argument("--precision", choices=["auto", "float32", "int8"], default="auto")
    options = parser.parse_args()
    texts = [line.strip() for line in text_files.lines(options.text) if line.strip()]
    if options.tiny:
        options.bundle = Path(tempfile.mkdtemp()) / "tiny"
        # a word like a special symbol would be in the vocabulary twice
        _make_tiny(options.bundle, [text.replace("<unk>", "") for text in texts[:1000]])
    np.random.default_rng(0).shuffle(texts)
    lines = [orjson.dumps({"input": text, "detail": options.detail}) for text in texts]
    with serving(options.bundle, options.precision) as url:
        (server,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        run = _Run(url, lines, {"server": int(server), "client": os.getpid()})
        if options.megabytes is None:
            _report_ratios(options, run, texts)
        else:
            asyncio.run(run.send(megabytes=options.megabytes))
            _report_memory(run, options.megabytes)


def _make_tiny(folder: Path, texts: list[str]) -> None:
    """A random model of one layer and whole words, so that the engine is hardly the limit."""
    import torch

    from model.architecture.gcnn import GCNN
    from model.core.config import Block, ModelConfig
    from model.core.tokenizer import train_words
    from model.data.corpus import Corpus, prepare
    from model.export.bundle_writer import export

    tokenizer = train_words(texts, 300)
    torch.manual_seed(1)
    config = ModelConfig(
        vocabulary=tokenizer.size,
        embedding=8,
        input_channels=8,
        head_channels=8,
        tied=True,
        blocks=(Block(layers=((2, 8),), residual=False),),
    )
    halves = texts[::2], texts[1::2]
    prepare(["\n".join(half) for half in halves], tokenizer, folder.with_name("corpus"))
    calibration = Corpus(folder.with_name("corpus"))
    export(
        GCNN(config, tokenizer.start_id).eval(), tokenizer, folder, "tiny", calibration=calibration
    )


@dataclass(slots=True)
class _Run:
    """What is sent, over and over, and what has come of it."""

    url: str
    lines: list[bytes]
    pids: dict[str, int]
    tokens: int = 0
    answers: int = 0
    errors: int = 0
    sent: int = 0
    seconds: float = 0.0
    memory: dict[str, list[float]] = field(default_factory=dict)

    async def send(self, *, seconds: float | None = None, megabytes: float | None = None) -> float:
        """Scores lines for a time or up to a size; tokens per second."""
        began, before = time.perf_counter(), self.tokens
        end = None if seconds is None else began + seconds
        watching = asyncio.create_task(self._watch())
        async with (
            AsyncClient(self.url) as client,
            aclosing(client.answers(self._lines(end, megabytes))) as answers,
        ):
            async for answer in answers:
                self.answers += 1
                if "error" in answer:
                    self.errors += 1
                else:
                    self.tokens += answer["usage"]["total_tokens"]
        watching.cancel()
        took = time.perf_counter() - began
        self.seconds += took
        return (self.tokens - before) / took

    def _lines(self, end: float | None, megabytes: float | None) -> Iterator[bytes]:
        most = None if megabytes is None else megabytes * 1e6
        for line in itertools.islice(
            itertools.cycle(self.lines), self.answers % len(self.lines), None
        ):
            late = end is not None and time.perf_counter() > end
            if late or (most is not None and self.sent >= most):
                return
            self.sent += len(line) + 1
            yield line

    async def _watch(self) -> None:
        while True:
            for name, pid in self.pids.items():
                self.memory.setdefault(name, []).append(resident(pid))
            await asyncio.sleep(_SAMPLE_SECONDS)


def _report_ratios(options: argparse.Namespace, run: _Run, texts: list[str]) -> None:
    loaded = bundle.load(options.bundle)
    session = Session(loaded, "cpu", 0, 64, options.precision)
    some = list(itertools.islice(itertools.cycle(texts), options.raw_lines))
    batches, tokens = planned(loaded, some, session.multiple)
    run_raw(session, batches)  # warm-up
    asyncio.run(run.send(seconds=min(5.0, options.seconds)))
    raw = [tokens / run_raw(session, batches)]
    served = []
    for _ in range(options.rounds):
        served.append(asyncio.run(run.send(seconds=options.seconds / options.rounds)))
        raw.append(tokens / run_raw(session, batches))
    ratios = [
        rate / ((before + after) / 2)
        for rate, (before, after) in zip(served, itertools.pairwise(raw), strict=True)
    ]
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"bundle: {loaded.config.name} {loaded.fingerprint} in {session.precision}")
    print(f"{run.answers} lines in {run.seconds:.0f} s, {run.errors} errors, {options.detail}")
    print("| figure | median | min | max |\n| --- | --- | --- | --- |")
    for name, values in (
        ("bulk / raw loop", ratios),
        ("bulk tokens/s", served),
        ("raw loop tokens/s", raw),
        *((f"{name}, MB resident", values) for name, values in run.memory.items()),
    ):
        print(f"| {name} | {statistics.median(values):.4g} | {min(values):.4g} ", end="")
        print(f"| {max(values):.4g} |")


def _report_memory(run: _Run, megabytes: float) -> None:
    print(f"{megabytes:.0f} MB sent in {run.seconds:.0f} s, {run.answers} lines, ", end="")
    print(f"{run.errors} errors, {run.tokens / run.seconds:.0f} tokens/s")
    print(
        "| MB resident | after 2 % | least | most | at the end |\n| --- | --- | --- | --- | --- |"
    )
    for name, values in run.memory.items():
        rest = values[len(values) // 50 :]
        print(f"| {name} | {rest[0]:.0f} | {min(rest):.0f} | {max(rest):.0f} | {rest[-1]:.0f} |")


if __name__ == "__main__":
    main()
