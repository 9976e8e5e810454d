"""The application. It connects the API, the catalog and the settings."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from app.api.docs_page import add_docs
from app.api.endpoints import FAST_PATHS, SCHEMAS, add_routes
from app.api.http import errors, openapi, request_ids
from app.api.http.fast_path import FastPath, HeadAsGet
from app.api.http.hosts import AllowedHosts, HostsAndOrigins
from app.api.http.open_bodies import OpenBodies
from app.api.http.shutdown import ShutdownResponses, Unanswered
from app.catalog.catalog import Catalog
from app.catalog.reload import watch_bundles
from app.errors import EngineError
from app.metrics import Metrics
from app.server import descriptors
from app.server.connections import Connections, Limits
from app.server.heads import Refusal
from app.server.memory import freeze_gc
from app.settings import Settings

_log = logging.getLogger(__name__)
_DESCRIPTION = """\
Scores and generates text with a gated convolutional language model (Dauphin et al. 2017).

Every error has the shape `{"error": {"message", "type", "param", "code"}}`: 400 for a bad body,
403 for an origin that is not allowed, 404 for an unknown model or path, 408 for a request that
comes too slowly, 413 for one over a limit, 421 for a host that is not allowed, 500 for a fault, 503
while loading or overloaded, 504 for no answer within the time that the request gave.
"""
_ENGINE_CHECK_SECONDS = 1.0
_CLOSE_SECONDS = 2.0
"""Time for running batches to end; loading a model may take longer."""
_LIMITS = ("max_request_", "max_completion_", "max_top_", "max_stop_")
"""Prefixes of the settings that limit requests."""


def create_app(
    settings: Settings,
    on_failure: Callable[[Exception], None] | None = None,
    *,
    reload: bool = True,
    owns_process: bool = False,
) -> FastAPI:
    """The server. It answers 503 until the bundle is loaded and the engine has run once.

    on_failure: called when loading fails, or an engine later; the server keeps answering 503.
    reload: whether changed bundles are loaded, at SIGHUP too. owns_process: whether the process
    runs only this server, so that objects present after loading stay (`memory.freeze_gc`).
    """
    metrics = Metrics()
    catalog = Catalog(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(catalog, owns_process=owns_process))
        loading.add_done_callback(lambda task: _report(task, on_failure))
        checking = asyncio.create_task(_check_engines(catalog, on_failure))
        watching = watch_bundles(catalog, settings.reload_seconds) if reload else nullcontext()
        try:
            async with watching:
                yield
        finally:
            checking.cancel()
            catalog.stop()  # loads no further models
            with suppress(TimeoutError):
                # a process of its own ends without what still runs then
                async with asyncio.timeout(_CLOSE_SECONDS if owns_process else None):
                    await asyncio.gather(loading, return_exceptions=True)
                    await asyncio.to_thread(catalog.close)

    app = FastAPI(
        title="convlm",
        description=f"{_DESCRIPTION}\n{_limits(settings)}\n",
        version=version("convlm"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts of another host
        redoc_url=None,
        redirect_slashes=False,
        responses=openapi.errors(403, 421, 500, 503),
    )
    app.state.catalog, app.state.metrics = catalog, metrics
    app.state.unanswered = Unanswered()
    app.state.connections = _connections(settings, metrics)
    app.state.open_bodies = OpenBodies(settings.max_open_body_bytes)
    add_routes(app)
    add_docs(app)
    errors.install(app)
    _add_middleware(app, settings)
    schema = functools.cache(lambda: openapi.schema_of(app, SCHEMAS, settings))
    app.openapi = schema  # type: ignore[method-assign]
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Adds middleware; a request passes through it from the last added to the first."""
    app.add_middleware(FastPath, handlers=FAST_PATHS)
    app.add_middleware(HeadAsGet)
    app.add_middleware(ShutdownResponses, unanswered=app.state.unanswered)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[request_ids.HEADER, "retry-after", *errors.NO_RETRY],
        )
    app.add_middleware(HostsAndOrigins, hosts=AllowedHosts.of(settings), origins=settings.origins)
    app.add_middleware(request_ids.RequestIds)


def _connections(settings: Settings, metrics: Metrics) -> Connections:
    """The bounds of connections, whose refusals look like all errors."""
    files = descriptors.shares(descriptors.open_files_limit(), settings.max_connections)
    limits = Limits(
        head_seconds=settings.head_seconds,
        idle_seconds=settings.idle_seconds,
        body_seconds=settings.body_seconds,
        reader_seconds=settings.reader_seconds,
        max_connections=files.connections,
        max_guests=files.guests,
        max_connections_per_address=settings.max_connections_per_address,
        trusted=settings.trusted_networks,
    )
    connections = Connections(
        limits, _refusing, lambda reason: metrics.rejected.labels(reason).inc()
    )
    metrics.connections.set_function(lambda: len(connections))
    return connections


def _refusing(refusal: Refusal) -> ASGIApp:
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    body = errors.error_body(refusal.message, kind, None, refusal.code)
    return request_ids.RequestIds(JSONResponse(body, refusal.status, dict(refusal.headers)))


def _limits(settings: Settings) -> str:
    """The limits named in the descriptions of fields."""
    values = settings.model_dump()
    return "Limits of this server: " + ", ".join(
        f"`{name}` {value:,}" for name, value in values.items() if name.startswith(_LIMITS)
    )


async def _load(catalog: Catalog, *, owns_process: bool) -> None:
    await asyncio.to_thread(catalog.load)
    if owns_process:
        freeze_gc()


def _report(task: asyncio.Task[None], on_failure: Callable[[Exception], None] | None) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception):
        _log.error("model not loaded: %s", error)
        if on_failure is not None:
            on_failure(error)


async def _check_engines(catalog: Catalog, on_failure: Callable[[Exception], None] | None) -> None:
    """Ends engines that hang, and reports one that stopped; only a restart brings it back."""
    while not catalog.broken:
        await asyncio.sleep(_ENGINE_CHECK_SECONDS)
        catalog.end_hung()
    if on_failure is not None:
        on_failure(EngineError("an engine has stopped"))
