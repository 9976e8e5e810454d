"""A live server: uvicorn on a port of its own, with the tiny bundle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from app.lm.model import LanguageModel
from app.main import create_app
from app.server.http1 import bounded
from app.settings import Settings
from model.architecture.gcnn import GCNN
from model.core.graph import Floats
from model.core.tokenizer import Tokenizer
from model.evaluation.scoring import logprobs as reference_logprobs

PATIENCE_SECONDS = 60.0
"""A bound for polls, far above what is waited for; nothing is measured by it."""


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Waits until something holds; fails when it does not within the bound."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.01)


def failing(error: Exception) -> Callable[..., Any]:
    """A method that raises."""

    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers, and a client of it."""

    app: FastAPI
    url: str
    client: httpx.Client
    failures: list[Exception]

    @property
    def model(self) -> LanguageModel:
        return self.app.state.catalog.get(None)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The response to a JSON body."""
        return self.client.post(path, json=body)

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a body that is right."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str) -> float:
        """A counter's or gauge's value in /metrics."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split()[0] == name)

    def wait_until_failed(self) -> None:
        """Waits until loading has failed."""
        eventually(lambda: bool(self.failures), "a failure to load")

    def wait_until_ready(self) -> None:
        """Waits until the model answers."""
        eventually(lambda: self.client.get("/readyz").status_code == 200, "a loaded model")

    def assert_alive(self) -> None:
        """The chaos tests' last question: does it still answer, with nothing left undone?"""
        eventually(lambda: self.metric("convlm_queue_tokens") == 0, "an empty queue")
        eventually(lambda: not self.model.engine.waiting, "no work with the engine")
        assert self.client.get("/readyz").status_code == 200
        answer = self.ask("/v1/score", input="Alice was beginning")
        assert answer["data"][0]["token_count"] > 0


@contextmanager
def crowded(server: Server, tokens: int, per_second: float, *, bulk: int = 0) -> Iterator[None]:
    """Makes it seem that others' tokens wait, `bulk` of them as bulk, done at this rate."""
    loop = server.model.engine.loops[0]
    outstanding, rate = loop.outstanding, loop.rate.per_second
    outstanding.due += tokens
    outstanding.bulk_due += bulk
    loop.rate.per_second = per_second
    try:
        yield
    finally:
        outstanding.due -= tokens
        outstanding.bulk_due -= bulk
        loop.rate.per_second = rate


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Runs a server that is ready in a thread until the block ends."""
    with starting(settings) as server:
        server.wait_until_ready()
        yield server


@contextmanager
def starting(settings: Settings) -> Iterator[Server]:
    """Runs a server that may still be loading."""
    failures: list[Exception] = []
    app = create_app(settings, failures.append)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="error",
        timeout_graceful_shutdown=5,
        http=bounded(app.state.connections),
        ws="none",
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, name="server")
    thread.start()
    try:
        eventually(lambda: runner.started or not thread.is_alive(), "a started server")
        port = runner.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            yield Server(app, url, client, failures)
    finally:
        runner.should_exit = True
        thread.join()


def settings_for(folder: Path, **changed: Any) -> Settings:
    """Settings for tests: the CPU, one thread, float32 as the reference, a Host of any name."""
    fields = {"device": "cpu", "threads": 1, "precision": "float32", "allowed_hosts": "*"} | changed
    return Settings(bundle=folder, **fields)


@pytest.fixture(scope="session")
def server(tiny_folder: Path) -> Iterator[Server]:
    """A server with the default limits."""
    with serving(settings_for(tiny_folder)) as running:
        yield running


@pytest.fixture(scope="session")
def small(tiny_folder: Path) -> Iterator[Server]:
    """A server with limits that are quickly reached."""
    limits = settings_for(
        tiny_folder,
        max_request_bytes=20_000,
        max_request_tokens=1000,
        max_request_texts=8,
        max_request_hypotheses=9,
        max_completion_tokens=50,
        max_top_logprobs=5,
        max_top_k=20,
        max_stop_strings=4,
    )
    with serving(limits) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Reference:
    """What PyTorch says, in float32, of the weights that the bundle stores."""

    model: GCNN
    tokenizer: Tokenizer

    def ids(self, text: str, context: str = "", *, add_eos: bool = False) -> list[int]:
        """The start symbol, the context, the text, the end symbol if wanted."""
        parts = [self.tokenizer.encode(part).ids.tolist() for part in (context, text)]
        end = [self.tokenizer.end_id] if add_eos else []
        return [self.tokenizer.start_id, *parts[0], *parts[1], *end]

    def scores(self, ids: list[int]) -> Floats:
        """Log-probability of every token but the first, float32 [n - 1]."""
        return np.asarray(reference_logprobs(self.model, np.array(ids, np.int64)), np.float32)

    def rows(self, ids: list[int]) -> Floats:
        """Log-probabilities of every token behind every one of `ids`, float32 [n, V]."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids]))[0]
            return torch.log_softmax(logits, -1).numpy()

    def ids_before_an_end(self) -> list[int]:
        """Tokens after which the end symbol is probable, which it is not after most."""
        some = torch.randint(2, 400, (10_000, 10), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            ends = torch.log_softmax(self.model(some)[:, -1], -1)[:, self.tokenizer.end_id]
        return some[ends.argmax()].tolist()


@pytest.fixture(scope="session")
def reference(tiny_model: GCNN, tokenizer: Tokenizer) -> Reference:
    """The PyTorch model beside the server."""
    return Reference(tiny_model.stored(), tokenizer)
