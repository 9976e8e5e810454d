"""Loads a bundle's folder as a model with a running engine."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path

from app.catalog.copies import BundleCopies
from app.engine.engine import Admission, Engine
from app.engine.loop import EngineLoop
from app.engine.policy import POLICY, Budget
from app.engine.runtime.session import Session, open_sessions
from app.engine.scheduler import Scheduler
from app.lm.model import LanguageModel
from app.metrics import Metrics
from app.settings import Settings
from model.core import bundle
from model.core.bundle import Bundle

_log = logging.getLogger(__name__)


def load_model(
    name: str,
    folder: Path,
    settings: Settings,
    metrics: Metrics,
    admission: Admission,
    copies: BundleCopies,
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
    )
    return EngineLoop(scheduler, all_cores, metrics, shares, settings.max_batch_seconds)
