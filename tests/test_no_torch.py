"""The server runs without the training packages, and imports point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINING = ("torch", "onnx", "onnxscript", "zstandard")
OPTIONAL = {"zstandard"}  # httpx and the client take it if it is there
TORCH_FREE = ("model.core", "model.cli")


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
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
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
import app.cli.local, app.cli.main, app.cli.remote, model.cli.main
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


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module, top
            if node.module in ("app", "model"):
                yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)


def files(package: str) -> list[Path]:
    """A package's modules."""
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("model"), ids=lambda path: path.name)
def test_model_never_imports_app(path: Path) -> None:
    assert not [name for name, _ in imports(path) if name.partition(".")[0] == "app"]


@pytest.mark.parametrize("path", files("app"), ids=lambda path: str(path.relative_to(ROOT)))
def test_app_imports_only_the_torch_free_part_of_model(path: Path) -> None:
    for name, top in imports(path):
        package, _, module = name.partition(".")
        assert package not in TRAINING or (package in OPTIONAL and not top)
        if package == "model" and module:
            assert name.startswith(TORCH_FREE), f"{path}: {name}"
            assert not name.startswith("model.cli") or not top, f"{path}: model.cli is lazy"


def test_the_torch_free_part_imports_nothing_of_the_rest() -> None:
    for path in [*files("model/core"), *files("model/cli")]:
        for name, top in imports(path):
            package, _, other = name.partition(".")
            assert package not in TRAINING or not top, f"{path}: {name}"
            if package == "model" and other and top:
                assert name.startswith(TORCH_FREE), f"{path}: {name}"


@pytest.mark.parametrize("room", ["wire", "text"])
def test_bodies_and_text_know_no_server(room: str) -> None:
    for path in files(f"app/{room}"):
        for name, _ in imports(path):
            assert name.partition(".")[0] not in ("fastapi", "starlette", "onnxruntime")
            assert not name.startswith(("app.api", "app.engine", "app.lm"))


def test_the_engine_knows_no_http() -> None:
    for path in files("app/engine"):
        for name, _ in imports(path):
            assert name.partition(".")[0] not in ("fastapi", "starlette", "pydantic")
            assert not name.startswith(("app.api", "app.wire", "app.lm", "app.main"))


def test_leaves_import_nothing_of_ours() -> None:
    for leaf in ("settings", "errors", "metrics"):
        for name, _ in imports(ROOT / "app" / f"{leaf}.py"):
            assert name.partition(".")[0] not in ("app", "model"), f"{leaf}: {name}"
