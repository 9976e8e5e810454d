"""What a step of many streams costs, without HTTP and sampling: `make bench-steps`.

Each stream gets one token more, from the state in its slot: planned and run, with the head of its
distribution, as most steps have it. Rounds go through all numbers of streams.
"""

from __future__ import annotations

import argparse
import statistics
import time

from app.engine.planner import Step, plan
from app.engine.runtime.session import Session
from model.core.flat_batch import TailTerms
from tests.bench.figures import Figures
from tests.bench.scoring import add_run_options, introduced, precisions

STREAMS = (1, 8, 64, 256, 1000)
STEPS = 20
"""Of which the median counts."""


def main() -> None:
    """Prints a Markdown table for each precision of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_options(parser)
    options = parser.parse_args()
    loaded = introduced(options.bundle)
    for precision in precisions(loaded):
        figures = Figures(f"Steps of streams, {precision}, {options.rounds} rounds, milliseconds")
        session = Session(loaded, "cpu", 0, max(STREAMS), precision)
        for number in range(options.rounds + 1):
            for streams in STREAMS:
                milliseconds = 1000 * _step(session, streams)
                if number:  # after the warm-up
                    figures.add(f"{streams:,} streams", milliseconds)
        print(figures.markdown())


def _step(session: Session, streams: int) -> float:
    """Seconds that a step of all streams takes."""
    head = TailTerms.always(0, session.tail_count).padded(streams + -streams % session.multiple)
    seconds = []
    for position in range(STEPS):
        began = time.perf_counter()
        steps = [Step(5, 1 + number, position + number) for number in range(streams)]
        terms = head if session.tail_count else None
        session.run(plan(steps, session.taps, session.multiple, terms))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
