"""Clients in a closed loop: requests from standard input, what they took on standard output.

A process of its own, so that it has nothing else to do, in an environment of its own: aiohttp
costs a fraction of what a request costs the servers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp


async def _run(url: str, bodies: list[str], clients: int) -> dict[str, object]:
    """seconds of all, latencies in seconds and answers in the order of bodies."""
    waiting = list(enumerate(bodies))[::-1]
    answers = [b""] * len(bodies)
    latencies = [0.0] * len(bodies)
    headers = {"Content-Type": "application/json"}

    async def client(http: aiohttp.ClientSession) -> None:
        while waiting:
            place, body = waiting.pop()
            began = time.perf_counter()
            async with http.post(url, data=body.encode(), headers=headers) as answer:
                answers[place] = await answer.read()
                answer.raise_for_status()
            latencies[place] = time.perf_counter() - began

    connector = aiohttp.TCPConnector(limit=clients)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(http))
        seconds = time.perf_counter() - began
    parsed = [json.loads(answer) for answer in answers]
    return {"seconds": seconds, "latencies": latencies, "answers": parsed}


if __name__ == "__main__":
    json.dump(asyncio.run(_run(**json.load(sys.stdin))), sys.stdout)
