"""The models of the server by name: loaded once, checked by running, closed at the end."""

from __future__ import annotations

import logging
import time

from app.engine.admission import Admission
from app.engine.loop import EngineLoop
from app.engine.scheduler import Budget, Scheduler
from app.engine.session import open_sessions
from app.engine.states import Slots
from app.errors import NotReadyError, UnknownModelError
from app.lm import LanguageModel
from app.metrics import Metrics
from app.settings import Settings
from model import bundle

_log = logging.getLogger(__name__)


class Catalog:
    """Holds the loaded model; empty until `load` has run."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._models: dict[str, LanguageModel] = {}

    @property
    def models(self) -> list[LanguageModel]:
        """Models that answer requests."""
        return list(self._models.values())

    def get(self, name: str | None) -> LanguageModel:
        """A model by name, the only one for None. Raises NotReadyError, UnknownModelError."""
        if not self._models:
            raise NotReadyError("the model is still being loaded")
        if name is not None and name not in self._models:
            known = ", ".join(self._models)
            raise UnknownModelError(f"model: there is no model {name!r}; there is {known}", "model")
        model = next(iter(self._models.values())) if name is None else self._models[name]
        if not model.engine.running:
            raise NotReadyError("the engine has stopped")
        return model

    def load(self) -> None:
        """Loads the bundle and runs it once. Raises BundleError, EngineError."""
        began = time.perf_counter()
        settings = self.settings
        found = bundle.load(settings.bundle)
        slots = settings.max_open_sequences
        session, parts = open_sessions(
            found,
            settings.device,
            settings.threads,
            settings.sessions,
            slots,
            settings.precision,
        )
        scheduler = Scheduler(
            found.config.model.receptive_field,
            Budget(settings.max_batch_tokens, settings.max_stream_batch_tokens),
            Slots(slots),
            len(parts) or 1,
        )
        engine = EngineLoop(scheduler, session, self.metrics, parts)
        engine.start()
        admission = Admission(settings.max_queue_tokens, self.metrics)
        model = LanguageModel(found, engine, admission, settings)
        self._models[model.name] = model
        _log.info(
            "model loaded name=%s fingerprint=%s device=%s precision=%s sessions=%d seconds=%.2f",
            model.name,
            found.fingerprint,
            session.device,
            session.precision,
            len(parts) or 1,
            time.perf_counter() - began,
        )

    def close(self) -> None:
        """Stops the engines."""
        models, self._models = self.models, {}
        for model in models:
            model.engine.stop()
