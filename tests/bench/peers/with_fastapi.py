"""Plain FastAPI: a text a run, each request on a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench.peers.scorer import PATH, Scorer, setting


class Body(BaseModel):
    """A request."""

    input: str


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    chosen = setting()
    app.state.scorer = Scorer(chosen)
    # as many runs at once as have a core: the 40 that threads allow would be in each other's way
    anyio.to_thread.current_default_thread_limiter().total_tokens = chosen.workers
    yield


app = FastAPI(lifespan=_lifespan)


@app.post(PATH)
def score(body: Body) -> dict[str, float]:
    """Scores one text."""
    return app.state.scorer.totals([body.input])[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=setting().port, log_level="warning", access_log=False)
