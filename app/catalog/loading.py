"""Loads a bundle's folder as a model with a running engine."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from app.catalog.copies import BundleCopies
from app.engine.admission import Admission
from app.engine.engine import Engine
from app.engine.loop import EngineLoop
from app.engine.policy import POLICY, Budget
from app.engine.rate import Rate
from app.engine.runtime.session import Session, open_sessions
from app.engine.scheduler import Scheduler
from app.errors import NoMemoryError
from app.lm.model import LanguageModel
from app.metrics import Metrics
from app.settings import Settings
from model.core import bundle
from model.core.bundle import Bundle
from model.core.flat_batch import whole_text

_log = logging.getLogger(__name__)
_FEWEST_ROWS = 8
"""Without memory for so many nothing can be served."""


def load_model(
    name: str, folder: Path, settings: Settings, metrics: Metrics, copies: BundleCopies
) -> LanguageModel:
    """Loads a bundle and runs its golden texts. Raises BundleError, EngineError."""
    began = time.perf_counter()
    with copies.frozen(folder) if settings.reloads else nullcontext(folder) as source:
        loaded = bundle.load(source)
        devices = open_sessions(
            loaded,
            settings.device,
            settings.threads,
            settings.sessions,
            settings.max_open_sequences,
            settings.precision,
        )
    engine = Engine([_loop(loaded, *sessions, settings, metrics) for sessions in devices])
    engine.start()
    admission = Admission(engine, settings.max_queue_seconds, metrics)
    model = LanguageModel(loaded, engine, admission, settings, name)
    _log.info(
        "model loaded name=%s fingerprint=%s device=%s precision=%s sessions=%d seconds=%.2f",
        model.name,
        loaded.fingerprint,
        devices[0][0].device,
        model.precision,
        sum(len(shares) or 1 for _, shares in devices),
        time.perf_counter() - began,
    )
    return model


def _loop(
    bundle: Bundle, all_cores: Session, shares: list[Session], settings: Settings, metrics: Metrics
) -> EngineLoop:
    """The engine loop of one device."""
    scheduler = Scheduler(
        bundle.config.model.receptive_field,
        Budget(
            settings.max_batch_tokens,
            settings.max_stream_batch_tokens,
            POLICY.rows_to_share(all_cores.precision),
        ),
        settings.max_open_sequences,
        len(shares) or 1,
        max_queue_seconds=settings.max_queue_seconds,
    )
    rate = Rate(_first_rate(bundle, all_cores, settings.max_batch_tokens))
    return EngineLoop(scheduler, all_cores, metrics, shares, rate, settings.max_batch_seconds)


def _first_rate(bundle: Bundle, session: Session, rows: int) -> float:
    """Rows in a second of a full batch, or of what part of it the memory allows."""
    while True:
        try:
            return _measured_rate(bundle, session, rows)
        except NoMemoryError:  # as batches are, see `EngineLoop`
            if rows <= _FEWEST_ROWS:
                raise
            rows //= 2


def _measured_rate(bundle: Bundle, session: Session, rows: int) -> float:
    """Rows in a second of a batch, of the better of two: the first may allocate."""
    ids = np.resize(bundle.golden[0].ids, max(2, rows))
    batch = whole_text(ids, session.taps, session.multiple)
    seconds: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        session.run(batch)
        seconds.append(time.perf_counter() - began)
    return rows / min(seconds)
