"""The server runs without the training packages; engine, bodies and text know no server.

Which room may import which is in `docs/test_rooms.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.measures import ROOT, Code, imported

CODE = Code.read(ROOT)
TRAINING = ("torch", "onnx", "onnxscript", "zstandard")
OPTIONAL = {"zstandard"}  # httpx and the client take it if it is there

SERVE = """
import asyncio, sys
from pathlib import Path

{before}
import httpx
from app.main import create_app
from app.settings import Settings


async def main():
    app = create_app(Settings(bundle=Path(sys.argv[1]), device="cpu", threads=1))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            for path, body in (
                ("/v1/score", {{"input": "Alice was beginning", "top_logprobs": 2}}),
                ("/v1/next", {{"input": "Alice"}}),
                ("/v1/completions", {{"prompt": "Alice", "max_tokens": 3, "stream": True}}),
            ):
                answer = await client.post(path, json=body)
                assert answer.status_code == 200, answer.text


asyncio.run(main())
import app.cli.main, app.cli.local, model.cli.main
found = sorted({{name.partition(".")[0] for name in sys.modules}} & {training!r})
assert not found, found
print("served")
"""
BLOCK = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {training!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)


sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("blocked", [False, True])
def test_the_server_never_imports_what_training_needs(tiny_folder: Path, blocked: bool) -> None:
    before = BLOCK.format(training=TRAINING) if blocked else ""
    training = set(TRAINING) - (set() if blocked else OPTIONAL)
    script = SERVE.format(before=before, training=training)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "served"


def test_the_help_is_printed_without_anything_heavy() -> None:
    script = (
        "import sys\nimport app.cli.main, model.cli.main\n"
        "print({'torch', 'numpy', 'pydantic', 'httpx', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_offline_commands_say_what_to_install() -> None:
    script = BLOCK.format(training=TRAINING) + (
        "sys.argv = ['convlm', 'train', 'recipe', '--train', 'a', '--valid', 'b', '--out', 'c']\n"
        "from app.cli.main import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "training packages" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", sorted(m for m in CODE.files if m.startswith("app")))
def test_app_imports_no_training_package_and_the_offline_commands_late(module: str) -> None:
    assert not packages(module, lazy=True) & (set(TRAINING) - OPTIONAL)
    assert not packages(module, lazy=False) & OPTIONAL
    commands = {name for name in CODE.imports(module) if name.startswith("model.cli")}
    assert commands <= {"model.cli.options"}  # which imports typer alone


@pytest.mark.parametrize("module", sorted(m for m in CODE.files if m.startswith("model.core")))
def test_what_app_imports_of_model_needs_no_training_package(module: str) -> None:
    assert not packages(module, lazy=False) & set(TRAINING)


@pytest.mark.parametrize(
    ("room", "other"),
    [
        ("app.engine", "pydantic"),
        ("app.lm", "pydantic"),
        ("app.text", "onnxruntime"),
        ("app.wire", "onnxruntime"),
    ],
)
def test_engine_text_and_bodies_know_no_server(room: str, other: str) -> None:
    for module in CODE.files:
        if f"{module}.".startswith(f"{room}."):
            known = packages(module, lazy=True) & {"fastapi", "starlette", "uvicorn", other}
            assert not known, module


def packages(module: str, *, lazy: bool) -> set[str]:
    """The packages that a module imports from."""
    return {name.partition(".")[0] for name in imported(CODE.trees[module], lazy=lazy)}
