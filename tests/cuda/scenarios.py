"""What the tests in this folder run in processes of their own: `scenarios.py NAME OUT ARGUMENTS`.

Each function is a scenario; its result goes to the file OUT as JSON, with what was logged.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import json
import logging
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # before anything else: the libraries of installed packages would be taken for these
    FAKE = ctypes.CDLL("libcuda.so.1")
    for _name in ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"):
        with suppress(OSError):
            ctypes.CDLL(_name)

import numpy as np
import onnxruntime as ort

from app.engine.planner import Piece, Step, plan
from app.engine.runtime.session import Session, open_sessions
from app.errors import EngineError
from app.settings import SHIPPED, Settings
from model.core import bundle
from model.core.flat_batch import FlatBatch

COUNTERS = ("fake_tf32", "fake_used", "fake_allocations", "fake_copies_in")


def counters() -> dict[str, Any]:
    """What the device was asked for so far."""
    found: dict[str, Any] = {n: ctypes.c_long.in_dll(FAKE, n).value for n in COUNTERS}
    found["fake_launches"] = list((ctypes.c_long * 8).in_dll(FAKE, "fake_launches"))
    return found


def set_fake(name: str, value: int) -> None:
    ctypes.c_long.in_dll(FAKE, name).value = value


def text(rows: int) -> list[Piece]:
    ids = np.arange(2, rows + 3)
    return [Piece(ids[:-1], None, None, range(rows), ids[1:], range(0), 0)]


def steps(streams: int, position: int) -> list[Piece]:
    return [Step(5, slot + 1, position) for slot in range(streams)]


def planned(session: Session, pieces: list[Piece]) -> FlatBatch:
    return plan(pieces, session.taps, session.multiple)


def opened(folder: str = str(SHIPPED)) -> Any:
    """Where sessions are opened with `auto`, and the error when CUDA is demanded, if one is."""
    loaded = bundle.load(Path(folder))
    sessions = open_sessions(loaded, "auto", 1, 1, 8, "float32")
    launches = counters()["fake_launches"]
    try:
        open_sessions(loaded, "cuda", 1, 1, 8, "float32")
    except EngineError as error:
        demanded = str(error)
    else:
        demanded = ""
    return {
        "devices": [session.device for session, _ in sessions],
        "launches": launches,
        "demanded": demanded,
    }


def batches(precision: Any = "float32") -> Any:
    """Texts and steps on one session, and what they ask for once the session is warm."""
    session = Session(bundle.load(SHIPPED), "cuda", 1, 64, precision)
    for turn in range(3):
        session.run(planned(session, text(100)))
        session.run(planned(session, steps(64, 100 + turn)))
    before = counters()
    session.run(planned(session, steps(64, 103)))
    after = counters()
    maps = Path("/proc/self/maps").read_text()
    return {
        "cudnn": "libcudnn" in maps,
        "tf32": after["fake_tf32"],
        "allocations": after["fake_allocations"] - before["fake_allocations"],
        "launches": after["fake_launches"][0] - before["fake_launches"][0],
        "copies_in": after["fake_copies_in"] - before["fake_copies_in"],
    }


def placement(folder: str, precision: Any = "float32") -> Any:
    """The nodes of a text's and a step's batch by provider, and those that copy."""
    options = ort.SessionOptions

    def profiled() -> Any:
        made = options()
        made.enable_profiling = True
        made.profile_file_prefix = str(Path(folder) / "profile")
        return made

    ort.SessionOptions = profiled
    session = Session(bundle.load(SHIPPED), "cuda", 1, 64, precision)
    session.run(planned(session, text(100)))
    session.run(planned(session, steps(3, 100)))
    path = session._session.end_profiling()
    nodes: dict[str, Counter[str]] = {}
    for event in json.loads(Path(path).read_text()):
        arguments = event.get("args") or {}
        if "provider" in arguments:
            kind = arguments["op_name"]
            nodes.setdefault(arguments["provider"], Counter())[kind] += 1
    return nodes


def out_of_memory() -> Any:
    """A batch that does not fit, and one that does, before and after."""
    session = Session(bundle.load(SHIPPED), "cuda", 1, 8, "float32")
    session.run(planned(session, text(64)))
    set_fake("fake_memory", counters()["fake_used"] + (64 << 20))
    try:
        session.run(planned(session, text(20_000)))
    except EngineError as error:
        message = str(error)
    else:
        message = ""
    rows = len(session.run(planned(session, text(64))).logprobs)
    return {"error": message, "rows": rows}


def dying(folder: str) -> Any:
    """The status of answers of a server whose GPU dies after the first, and of `/readyz`."""
    import httpx

    from app.main import create_app

    async def asked() -> list[tuple[int, int]]:
        failures: list[Exception] = []
        settings = Settings(bundle=Path(folder), device="cuda", precision="float32")
        app = create_app(settings, failures.append, reload=False)
        transport = httpx.ASGITransport(app)
        found = []
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            while (await client.get("/readyz")).status_code != 200:
                assert not failures, failures
                await asyncio.sleep(0.01)
            for number in range(5):
                if number == 1:
                    set_fake("fake_error", 700)
                answer = await client.post("/v1/score", json={"input": "Alice was beginning"})
                ready = await client.get("/readyz")
                found.append((answer.status_code, ready.status_code))
        return found

    return asyncio.run(asked())


def main() -> None:
    """Runs one scenario."""
    name, out, arguments = sys.argv[1:]
    log = io.StringIO()
    logging.basicConfig(level="INFO", stream=log)
    result = globals()[name](**json.loads(arguments))
    Path(out).write_text(json.dumps({"result": result, "log": log.getvalue()}))


if __name__ == "__main__":
    main()
