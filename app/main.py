"""The application: the only file that knows all rooms."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.api import bulk, completions, health, models, next, rescore, score, tokenize
from app.api.http import errors, openapi, request_ids
from app.api.http.fast_path import Direct
from app.api.http.head import HeadAsGet
from app.api.http.shutdown import Ending, Unanswered
from app.catalog.catalog import Catalog
from app.catalog.reload import watching
from app.errors import EngineError
from app.metrics import Metrics
from app.server.memory import settle
from app.settings import Settings

_log = logging.getLogger(__name__)
_DIRECT = {
    "/v1/score": score.score,
    "/v1/rescore": rescore.rescore,
    "/v1/next": next.following,
    "/v1/completions": completions.completions,
}
_DESCRIPTION = """\
Scores and generates text with a gated convolutional language model (Dauphin et al. 2017).

Every error has the shape `{"error": {"message", "type", "param", "code"}}`: 400 for a bad body,
413 for one over a limit, 404 for an unknown model or path, 503 while loading or overloaded.
"""
_MIND_SECONDS = 1.0
_LIMITS = ("max_request_", "max_completion_", "max_top_", "max_stop_")
"""How the settings begin that limit requests."""


def create_app(
    settings: Settings,
    on_failure: Callable[[Exception], None] | None = None,
    *,
    follow: bool = True,
    settled: bool = False,
) -> FastAPI:
    """The server. It answers 503 until the bundle is loaded and the engine has run once.

    on_failure: called when loading fails, or an engine later; the server goes on answering 503.
    follow: whether bundles are looked at again, at SIGHUP too. settled: whether the process has
    nothing but this server, so that what is there once it is loaded will stay (`memory.settle`).
    """
    metrics = Metrics()
    catalog = Catalog(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(catalog, settled=settled))
        loading.add_done_callback(lambda task: _report(task, on_failure))
        minding = asyncio.create_task(_mind(catalog, on_failure))
        try:
            async with watching(catalog, settings.reload_seconds) if follow else nullcontext():
                yield
        finally:
            minding.cancel()
            catalog.stop()  # of several models that are being loaded, the others are not
            await asyncio.gather(loading, return_exceptions=True)
            await asyncio.to_thread(catalog.close)

    app = FastAPI(
        title="convlm",
        description=f"{_DESCRIPTION}\n{_limits(settings)}\n",
        version=version("convlm"),
        lifespan=lifespan,
        redirect_slashes=False,
        responses=openapi.errors(500, 503),
    )
    app.state.catalog, app.state.metrics = catalog, metrics
    app.state.unanswered = Unanswered()
    routes = list(app.routes)
    for module in (score, bulk, rescore, next, completions, tokenize, models, health):
        app.include_router(module.router)
        routes += module.router.routes
    errors.install(app, routes)
    app.add_middleware(Direct, endpoints=_DIRECT)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Ending, unanswered=app.state.unanswered)
    if settings.origins:
        everything = ["*"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=everything,
            allow_headers=everything,
            expose_headers=[request_ids.HEADER, "retry-after"],
        )
    app.add_middleware(request_ids.RequestIds)
    schema = functools.cache(lambda: openapi.schema_of(app, settings))
    app.openapi = schema  # type: ignore[method-assign]
    return app


def _limits(settings: Settings) -> str:
    """The limits that fields' descriptions name."""
    values = settings.model_dump()
    return "Limits of this server: " + ", ".join(
        f"`{name}` {value:,}" for name, value in values.items() if name.startswith(_LIMITS)
    )


async def _load(catalog: Catalog, *, settled: bool) -> None:
    await asyncio.to_thread(catalog.load)
    if settled:
        settle()


def _report(task: asyncio.Task[None], on_failure: Callable[[Exception], None] | None) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception):
        _log.error("model not loaded: %s", error)
        if on_failure is not None:
            on_failure(error)


async def _mind(catalog: Catalog, on_failure: Callable[[Exception], None] | None) -> None:
    """Tells when an engine has ended by a fault of ours: only a new process has another."""
    while not catalog.broken:
        await asyncio.sleep(_MIND_SECONDS)
    if on_failure is not None:
        on_failure(EngineError("an engine has stopped"))
