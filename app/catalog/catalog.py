"""The models of the server by name: loads, replaces and closes them."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import weakref
from collections.abc import Callable

from app.catalog.copies import BundleCopies, remove_abandoned
from app.catalog.folders import BundleFolder, BundleFolders, inspect
from app.catalog.loading import load_model
from app.engine.engine import Engine
from app.errors import STOPPING, EngineError, NotReadyError, UnknownModelError, UnloadableError
from app.lm.model import LanguageModel
from app.metrics import Metrics
from app.server.memory import bound_arenas, trim
from app.settings import Settings
from model.core.bundle import BundleError

_log = logging.getLogger(__name__)
_TRIM_SECONDS = 1.0
"""Time from the end of models until their memory is given back to the system."""


class Catalog:
    """Holds the models; empty until `load` has run.

    A request holds the `LanguageModel` that it uses. The catalog drops a model that is replaced or
    removed, and its engine ends once nothing else holds it: running requests finish with the model
    they began with, without an explicit release.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._loads: dict[str, asyncio.Task[None]] = {}
        # never changed in place, so that the event loop reads them without a lock
        self._bundles: dict[str, BundleFolder] = {}
        self._models: dict[str, LanguageModel] = {}
        self._failed: frozenset[str] = frozenset()
        self._changing = threading.Lock()  # held to change `_bundles` to `_complaint`
        self._folders: BundleFolders | None = None
        self._seen: dict[str, BundleFolder] = {}
        self._tried: dict[str, BundleFolder] = {}
        self._complaint = ""
        self._copies = BundleCopies()
        self._leaving = self._closed = False
        self._stopping = threading.Event()
        self._engines: set[Engine] = set()
        self.hung = False
        """Whether a thread was left in a batch that does not end."""
        metrics.oldest_batch.set_function(self._oldest_batch_seconds)
        self._unused: queue.SimpleQueue[Engine | None] = queue.SimpleQueue()
        metrics.queue_tokens.set_function(lambda: sum(m.admission.tokens for m in self.models))
        metrics.queue_seconds.set_function(
            lambda: max((m.admission.seconds for m in self.models), default=0.0)
        )
        self._closer = threading.Thread(target=self._close_unused, name="closing", daemon=True)

    @property
    def models(self) -> list[LanguageModel]:
        """Models that are loaded."""
        return list(self._models.values())

    @property
    def bundles(self) -> list[BundleFolder]:
        """The bundles of all models, loaded or not, the default model's first."""
        return list(self._bundles.values())

    @property
    def lingering(self) -> bool:
        """Whether a model that was replaced or removed is still used."""
        return len(self._engines) > len(self._models)

    def check(self) -> None:
        """Raises NotReadyError unless the server can answer."""
        self.bundle(None)
        for model in self.models:
            model.engine.check()

    def check_ready(self) -> None:
        """Raises NotReadyError unless the server can answer, and will go on to."""
        if self._leaving:
            raise NotReadyError(STOPPING)
        self.check()

    def check_room(self, tokens: Callable[[], int]) -> None:
        """Raises OverloadError if no model could take even one token more.

        tokens: the tokens of the request, about, for what the error says.
        """
        models = self._models.values()
        if models:
            emptiest = min(models, key=lambda model: model.admission.seconds)
            emptiest.admission.check(tokens)

    def check_open(self) -> None:
        """Raises NotReadyError when the server is stopping."""
        if self._stopping.is_set():
            raise NotReadyError(STOPPING)

    @property
    def broken(self) -> bool:
        """Whether an engine stopped unexpectedly."""
        return not self._stopping.is_set() and any(not m.engine.running for m in self.models)

    def end_hung(self) -> None:
        """Ends engines whose batches will not end, also those of models that were replaced."""
        for engine in list(self._engines):
            engine.end_if_hung()

    def get(self, name: str | None) -> LanguageModel:
        """A loaded model by name, the default for None. Raises NotReadyError, UnknownModelError."""
        name = self.bundle(name).name
        model = self._models.get(name)
        if model is None and name in self._failed:
            raise UnloadableError(f"the model {name!r} cannot be loaded; the server's log says why")
        if model is None:
            raise NotReadyError(f"the model {name!r} is still being loaded")
        model.engine.check()
        return model

    async def loaded(self, name: str | None) -> LanguageModel:
        """As `get`, but loads a model that is needed for the first time."""
        name = self.bundle(name).name
        if name not in self._models:
            if name not in self._loads:
                load = asyncio.create_task(asyncio.to_thread(self._load_late, name))
                load.add_done_callback(lambda _: self._loads.pop(name))
                self._loads[name] = load
            await asyncio.shield(self._loads[name])  # other requests may wait for it too
        return self.get(name)

    def bundle(self, name: str | None) -> BundleFolder:
        """A model's bundle, the default's for None. Raises NotReadyError, UnknownModelError."""
        self.check_open()
        bundles = self._bundles
        if not bundles:
            raise NotReadyError("the model is still being loaded")
        if name is None:
            return next(iter(bundles.values()))
        if name not in bundles:
            known = ", ".join(bundles)
            raise UnknownModelError(f"model: there is no model {name!r}; there is {known}", "model")
        return bundles[name]

    # Changes, on any thread but the event loop's

    def load(self) -> None:
        """Loads the default model, or all if the settings say so.

        Raises BundleError, EngineError.
        """
        if self.settings.reloads:
            bound_arenas()
        remove_abandoned()
        with self._changing:
            if self._stopping.is_set():
                return
            self._folders = BundleFolders(self.settings)
            self._seen = bundles = self._folders.scan(())
            wanted = list(bundles.values())[: 1 if self.settings.loading == "lazy" else None]
            self._tried = {b.name: b for b in wanted}
            self._models = {b.name: self._load(b) for b in wanted if not self._stopping.is_set()}
            self._bundles = bundles

    def refresh(self, *, at_once: bool) -> None:
        """Scans for bundles that were changed, added or removed, and updates the models.

        Unless `at_once`, a bundle counts only if it is as it was at the last scan: otherwise it may
        still be being written. Bundles that failed to load are tried again when they change, or
        `at_once`.
        """
        with self._changing:
            if self._stopping.is_set() or self._folders is None or not self._bundles:
                return
            try:
                bundles = self._folders.scan(self._bundles)
            except BundleError as error:
                self._complain(str(error))
                return
            self._complaint = ""
            seen, self._seen = self._seen, bundles
            for name, bundle in bundles.items():
                if self._stopping.is_set():
                    return
                if at_once and name in self._failed:
                    self._tried.pop(name, None)
                if at_once or seen.get(name) == bundle:
                    self._update(bundle)
            for name in self._bundles.keys() - bundles.keys():
                if at_once or name not in seen:
                    self._drop(name)
            kept = self._bundles
            self._bundles = {name: kept[name] for name in {**bundles, **kept} if name in kept}

    def _complain(self, message: str) -> None:
        """Logs an error of the folder of bundles, once."""
        if message != self._complaint:
            _log.error("bundles not scanned: %s", message)
            self._complaint = message

    def _update(self, bundle: BundleFolder) -> None:
        """Reloads a model if its folder has changed."""
        name = bundle.name
        if name in self._models or self.settings.loading == "eager":
            if self._tried.get(name) != bundle:
                self._replace(bundle)
        elif self._bundles.get(name) != bundle:
            self._failed -= {name}
            self._bundles = {**self._bundles, name: bundle}

    def _load_late(self, name: str) -> None:
        """Loads a model that is needed for the first time; `get` reports a failure."""
        with self._changing:
            bundle = self._bundles.get(name)
            if self._stopping.is_set() or bundle is None or name in self._models:
                return
            bundle = inspect(name, bundle.path)
            if self._tried.get(name) != bundle:
                self._replace(bundle)

    def _replace(self, bundle: BundleFolder) -> None:
        """Loads a bundle, and then replaces the model of that name if there is one.

        A bundle that cannot be loaded changes nothing.
        """
        name = bundle.name
        known = name in self._models
        self._tried[name] = bundle
        try:
            model = self._load(bundle)
        except Exception as error:
            expected = isinstance(error, BundleError | EngineError)
            rest = "the previous bundle stays in service" if known else "it is not served"
            _log.error("model not loaded name=%s: %s; %s", name, error, rest, exc_info=not expected)
            self.metrics.reloads.labels("failed").inc()
            self._failed |= {name}
        else:
            self.metrics.reloads.labels("replaced" if known else "added").inc()
            self._failed -= {name}
            self._models = {**self._models, name: model}
            self._bundles = {**self._bundles, name: bundle}
        trim()

    def _drop(self, name: str) -> None:
        _log.info("model removed name=%s", name)
        self._bundles = {key: value for key, value in self._bundles.items() if key != name}
        self._models = {key: model for key, model in self._models.items() if key != name}
        self._tried.pop(name, None)
        self._failed -= {name}

    def _load(self, bundle: BundleFolder) -> LanguageModel:
        model = load_model(bundle.name, bundle.path, self.settings, self.metrics, self._copies)
        if self._closer.ident is None:
            self._closer.start()
        self._engines.add(model.engine)
        self.metrics.models.set(len(self._engines))
        # may be called anywhere, in the middle of anything: it must not wait for a lock
        weakref.finalize(model, self._unused.put, model.engine).atexit = False
        return model

    def _oldest_batch_seconds(self) -> float:
        return max((engine.oldest_batch_seconds for engine in list(self._engines)), default=0.0)

    # The end

    def _close_unused(self) -> None:
        wait: float | None = None
        while True:
            try:
                engine = self._unused.get(timeout=wait)
            except queue.Empty:
                trim()
                wait = None
                continue
            if engine is None:
                return
            self.hung |= not engine.stop()
            self._engines.discard(engine)
            self.metrics.models.set(len(self._engines))
            _log.info("model closed")
            # the last request may still be leaving, so its sessions are freed a little later
            del engine
            wait = _TRIM_SECONDS

    def leave(self) -> None:
        """Makes readiness false; requests are still served."""
        self._leaving = True

    def stop(self) -> None:
        """Refuses new requests and fails the engines' work. Never blocks, even while a model is
        loading."""
        self._stopping.set()
        for engine in list(self._engines):
            engine.end()

    def close(self) -> None:
        """Ends the engines, also those of models that were replaced."""
        self.stop()
        with self._changing:
            self._bundles, self._models = {}, {}
            for engine in list(self._engines):
                self.hung |= not engine.stop()
            self._unused.put(None)
            if self._closer.is_alive():
                self._closer.join()
        self._closed = True

    def abandon(self) -> bool:
        """Removes copies of bundles that are being loaded. Returns whether a thread still runs:
        `close` waits for the model that is being loaded and for batches, but not for a batch that
        hangs."""
        if not self._closed:
            self._copies.remove()
        return self.hung or not self._closed
