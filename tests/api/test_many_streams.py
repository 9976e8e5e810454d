"""Hundreds of open streams: each complete, each as it would be alone, scoring goes on meanwhile."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.api.conftest import PATIENCE_SECONDS, Server

STREAMS = 150
BODY = {"prompt": "Alice was", "max_tokens": 24, "temperature": 1.0}


@pytest.mark.anyio
async def test_many_slow_readers_all_get_the_text_they_would_get_alone(server: Server) -> None:
    limits = httpx.Limits(max_connections=None)
    texts: dict[int, str] = {}
    scored = 0

    async with httpx.AsyncClient(
        base_url=server.url, timeout=PATIENCE_SECONDS, limits=limits, trust_env=False
    ) as client:

        async def follow(seed: int) -> None:
            pieces = []
            body = {**BODY, "seed": seed, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        texts[seed] = "".join(pieces)
                    elif line:
                        pieces.append(json.loads(line[6:])["choices"][0]["text"])
                        if len(pieces) % 8 == seed % 8:
                            await asyncio.sleep(0.01)  # every reader takes its time

        async def score() -> None:
            nonlocal scored
            while len(texts) < STREAMS:
                answer = await client.post("/v1/score", json={"input": "It was the best of times"})
                assert answer.status_code == 200
                scored += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(score())
            for seed in range(STREAMS):
                group.create_task(follow(seed))
    assert len(texts) == STREAMS
    assert scored >= 1
    assert len(set(texts.values())) > STREAMS / 2
    for seed in range(0, STREAMS, 37):
        alone = server.ask("/v1/completions", **BODY, seed=seed)
        assert alone["choices"][0]["text"] == texts[seed]
    server.assert_alive()
