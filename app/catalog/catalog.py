"""The models of the server by name: loaded, checked by running, replaced, closed at the end."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import weakref

from app.catalog.folders import Place, Places, look
from app.catalog.loading import open_model
from app.engine.admission import Admission
from app.engine.engine import Engine
from app.errors import (
    STOPPING,
    EngineError,
    NotReadyError,
    UnknownModelError,
    UnloadableError,
)
from app.lm.model import LanguageModel
from app.metrics import Metrics
from app.server.memory import keep_little, trim
from app.settings import Settings
from model.core.bundle import BundleError

_log = logging.getLogger(__name__)
_TRIM_SECONDS = 1.0
"""How long after the end of models memory is given back to the system."""


class Catalog:
    """Holds the models; empty until `load` has run.

    Whoever holds a `LanguageModel` uses it. The catalog drops one that is replaced or removed, and
    its engine ends when nobody else holds it either: requests under way finish on what they began
    with, and none has to say so.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._admission = Admission(settings.max_queue_tokens, metrics)
        self._loads: dict[str, asyncio.Task[None]] = {}
        # replaced as wholes, so that the event loop reads them without a lock
        self._places: dict[str, Place] = {}
        self._models: dict[str, LanguageModel] = {}
        self._failed: frozenset[str] = frozenset()
        self._changing = threading.Lock()  # held to change these, and for what follows
        self._where: Places | None = None
        self._seen: dict[str, Place] = {}
        self._tried: dict[str, Place] = {}
        self._complaint = ""
        self._stopping = threading.Event()
        self._engines: set[Engine] = set()
        self._unused: queue.SimpleQueue[Engine | None] = queue.SimpleQueue()
        self._ending = threading.Thread(target=self._end_unused, name="closing", daemon=True)

    @property
    def models(self) -> list[LanguageModel]:
        """Models that are loaded."""
        return list(self._models.values())

    @property
    def places(self) -> list[Place]:
        """The bundles of all models, loaded or not, the default model's first."""
        return list(self._places.values())

    @property
    def lingering(self) -> bool:
        """Whether a model that was replaced or removed is still used."""
        return len(self._engines) > len(self._models)

    def check(self) -> None:
        """Raises NotReadyError unless the server can answer."""
        self.place(None)
        for model in self.models:
            _check_running(model)

    def check_open(self) -> None:
        """Raises NotReadyError when the server is stopping."""
        if self._stopping.is_set():
            raise NotReadyError(STOPPING)

    @property
    def broken(self) -> bool:
        """Whether an engine has ended that nobody has stopped."""
        return not self._stopping.is_set() and any(not m.engine.running for m in self.models)

    def get(self, name: str | None) -> LanguageModel:
        """A loaded model by name, the default for None. Raises NotReadyError, UnknownModelError."""
        name = self.place(name).name
        model = self._models.get(name)
        if model is None and name in self._failed:
            raise UnloadableError(f"the model {name!r} cannot be loaded; the server's log says why")
        if model is None:
            raise NotReadyError(f"the model {name!r} is still being loaded")
        _check_running(model)
        return model

    async def loaded(self, name: str | None) -> LanguageModel:
        """As `get`, behind the loading of a model that is needed for the first time."""
        name = self.place(name).name
        if name not in self._models:
            if name not in self._loads:
                load = asyncio.create_task(asyncio.to_thread(self._load_late, name))
                load.add_done_callback(lambda _: self._loads.pop(name))
                self._loads[name] = load
            await asyncio.shield(self._loads[name])  # others may wait for it too
        return self.get(name)

    def place(self, name: str | None) -> Place:
        """A model's bundle, the default's for None. Raises NotReadyError, UnknownModelError."""
        self.check_open()
        places = self._places
        if not places:
            raise NotReadyError("the model is still being loaded")
        if name is None:
            return next(iter(places.values()))
        if name not in places:
            known = ", ".join(places)
            raise UnknownModelError(f"model: there is no model {name!r}; there is {known}", "model")
        return places[name]

    # Changes, on any thread but the event loop's

    def load(self) -> None:
        """Loads the default model, or all if the settings say so.

        Raises BundleError, EngineError.
        """
        if self.settings.reloads:
            keep_little()
        with self._changing:
            if self._stopping.is_set():
                return
            self._where = Places(self.settings)
            self._seen = found = self._where.find(())
            lazy = self.settings.loading == "lazy"
            wanted = list(found.values())[:1] if lazy else list(found.values())
            self._tried = {place.name: place for place in wanted}
            self._models = {
                place.name: self._open(place) for place in wanted if not self._stopping.is_set()
            }
            self._places = found

    def refresh(self, *, at_once: bool) -> None:
        """Looks for bundles that were changed, added or removed, and follows.

        Unless `at_once`, only what is as it was at the last look counts: the rest may be being
        written. Bundles that could not be loaded are tried again when they change, or `at_once`.
        """
        with self._changing:
            if self._stopping.is_set() or self._where is None or not self._places:
                return
            try:
                found = self._where.find(self._places)
            except BundleError as error:
                self._complain(str(error))
                return
            self._complaint = ""
            seen, self._seen = self._seen, found
            for name, place in found.items():
                if self._stopping.is_set():
                    return
                if at_once and name in self._failed:
                    self._tried.pop(name, None)
                if at_once or seen.get(name) == place:
                    self._follow(place)
            for name in self._places.keys() - found.keys():
                if at_once or name not in seen:
                    self._drop(name)
            kept = self._places
            order = [name for name in found if name in kept] + [n for n in kept if n not in found]
            self._places = {name: kept[name] for name in order}

    def _complain(self, message: str) -> None:
        """Logs what is wrong with the folder of bundles, once."""
        if message != self._complaint:
            _log.error("bundles not looked at: %s", message)
            self._complaint = message

    def _follow(self, place: Place) -> None:
        """Makes of a model what its folder is now."""
        name = place.name
        if name in self._models or self.settings.loading == "eager":
            if self._tried.get(name) != place:
                self._replace(place)
        elif self._places.get(name) != place:
            self._failed -= {name}
            self._places = {**self._places, name: place}

    def _load_late(self, name: str) -> None:
        """Loads a model that is needed for the first time; `get` tells of a failure."""
        with self._changing:
            place = self._places.get(name)
            if self._stopping.is_set() or place is None or name in self._models:
                return
            place = look(name, place.folder)
            if self._tried.get(name) != place:
                self._replace(place)

    def _replace(self, place: Place) -> None:
        """Loads a bundle beside the model of that name, if there is one, and puts it in its place.

        A bundle that cannot be loaded changes nothing.
        """
        name = place.name
        known = name in self._models
        self._tried[name] = place
        try:
            model = self._open(place)
        except Exception as error:
            expected = isinstance(error, BundleError | EngineError)
            rest = "the model goes on with the bundle of before" if known else "it is not served"
            _log.error("model not loaded name=%s: %s; %s", name, error, rest, exc_info=not expected)
            self.metrics.reloads.labels("failed").inc()
            self._failed |= {name}
        else:
            self.metrics.reloads.labels("replaced" if known else "added").inc()
            self._failed -= {name}
            self._models = {**self._models, name: model}
            self._places = {**self._places, name: place}
        trim()

    def _drop(self, name: str) -> None:
        _log.info("model removed name=%s", name)
        self._places = {key: place for key, place in self._places.items() if key != name}
        self._models = {key: model for key, model in self._models.items() if key != name}
        self._tried.pop(name, None)
        self._failed -= {name}

    def _open(self, place: Place) -> LanguageModel:
        model = open_model(place.name, place.folder, self.settings, self.metrics, self._admission)
        if self._ending.ident is None:
            self._ending.start()
        self._engines.add(model.engine)
        self.metrics.models.set(len(self._engines))
        # may be called anywhere, in the middle of anything: it must not wait for a lock
        weakref.finalize(model, self._unused.put, model.engine).atexit = False
        return model

    # The end

    def _end_unused(self) -> None:
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
            engine.stop()
            self._engines.discard(engine)
            self.metrics.models.set(len(self._engines))
            _log.info("model closed")
            # the last request may still be leaving, so its sessions are freed a little later
            del engine
            wait = _TRIM_SECONDS

    def stop(self) -> None:
        """Refuses what comes from now on and fails what the engines have; waits for nothing, a
        model that is being loaded least of all."""
        self._stopping.set()
        for engine in list(self._engines):
            engine.end()

    def close(self) -> None:
        """Ends the engines, also those of models that were replaced."""
        self.stop()
        with self._changing:
            self._places, self._models = {}, {}
            for engine in list(self._engines):
                engine.stop()
            self._unused.put(None)
            if self._ending.is_alive():
                self._ending.join()


def _check_running(model: LanguageModel) -> None:
    if not model.engine.running:
        raise NotReadyError(model.engine.why)
