"""Measures the code of app/ and model/: `python -m tests.docs.measures [--root DIR]`.

Prints a table in Markdown. The conventions:

- A function's lines run from its `def` to its end: docstring and comments count, decorators do not.
- Complexity is ruff's rule C901, also where a comment would silence it.
- Files of a folder are its modules, without `__init__.py` and without folders below it.
- Imports are those that run when a module is imported. Imports within functions, or only for the
  type checker, are not among them; for the direction of imports they count as well.
- A chain is counted in modules, the first and the last included.
- An import is upward if `model` imports `app`, or `app` anything of `model` besides `model.core`
  (in a checkout that has this folder); commands in `app.cli` may also import `model.cli`.
- Hops are calls of functions of app/ and model/ on the way of a short text from the handler of
  `/v1/score` to ONNX Runtime, in a real run with the shipped model: those that are active when the
  work is handed to the engine's thread, and those that are active there when the session runs. The
  function that a thread begins with on this way, the handler and the engine's main loop, is no hop;
  nor are ASGI applications (`__call__`) before the handler.
- A crossing is a thread more that runs functions of app/ or model/ on that way.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import dropwhile
from pathlib import Path
from statistics import fmean, median
from types import CodeType, FrameType

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "model")
LONG_FILE, LONG_FUNCTION, COMPLEX = 350, 50, 10
WORDS = ("found", "following", "place", "places", "own", "whole")
"""Names that say too little (the words of a name are counted, too)."""
HOPS_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Code:
    """The modules of a checkout by their dotted names."""

    root: Path
    files: dict[str, Path]
    trees: dict[str, ast.Module]

    @classmethod
    def read(cls, root: Path) -> Code:
        """Parses every Python file of app/ and model/."""
        paths = [path for name in PACKAGES for path in sorted((root / name).rglob("*.py"))]
        files = {module_name(path.relative_to(root)): path for path in paths}
        trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
        return cls(root, files, trees)

    def lines(self, module: str) -> int:
        """Lines of a module's file."""
        return len(self.files[module].read_text(encoding="utf-8").splitlines())

    def imports(self, module: str, *, lazy: bool = False) -> set[str]:
        """Modules of app and model that a module imports; lazy: also those within functions."""
        names = imported(self.trees[module], lazy=lazy)
        return {name for name in names if name in self.files} - {module}


def module_name(path: Path) -> str:
    """The dotted name of a file, relative to the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, *, lazy: bool) -> Iterator[str]:
    """Names of what a module imports, and of what it takes from there; lazy: in functions, too."""
    for node in ast.walk(tree) if lazy else _at_import(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_import(node.orelse)
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _at_import(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _at_import(handler.body)


# Sizes


def functions(code: Code) -> dict[str, int]:
    """Lines of every function, by module, line and name."""
    return {
        f"{module}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module, tree in code.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def long_files(code: Code) -> dict[str, int]:
    """Files above 350 lines and their lines."""
    lines = {module: code.lines(module) for module in code.files}
    return {module: count for module, count in lines.items() if count > LONG_FILE}


def long_functions(code: Code) -> dict[str, int]:
    """Functions above 50 lines and their lines."""
    return {name: lines for name, lines in functions(code).items() if lines > LONG_FUNCTION}


def complex_functions(code: Code) -> list[str]:
    """What ruff says of functions above complexity 10."""
    limit = f"lint.mccabe.max-complexity={COMPLEX}"
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--ignore-noqa"]
    command += ["--select", "C901", "--config", limit, "--output-format", "json", *PACKAGES]
    done = subprocess.run(command, cwd=code.root, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"ruff: {done.stderr}")
    return [f"{each['filename']}: {each['message']}" for each in json.loads(done.stdout)]


def folder_sizes(code: Code) -> Counter[str]:
    """Modules by folder."""
    return Counter(
        path.parent.relative_to(code.root).as_posix()
        for path in code.files.values()
        if path.name != "__init__.py"
    )


# Imports


def cycles(code: Code) -> list[list[str]]:
    """Groups of modules that import each other."""
    reached = {module: _reached(code, module) for module in code.files}
    groups = {
        tuple(sorted(m for m in reached[module] if module in reached[m]))
        for module in code.files
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def _reached(code: Code, start: str) -> set[str]:
    """Modules that an import of `start` imports, itself only if it is among them."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = code.imports(waiting.pop()) - seen
        seen |= new
        waiting += new
    return seen


def chain(code: Code, start: str = "app.main") -> list[str]:
    """The longest chain of imports from a module. There must be no cycle."""

    @cache
    def longest(module: str) -> list[str]:
        chains = [longest(name) for name in sorted(code.imports(module))]
        return [module, *max(chains, key=len, default=[])]

    return longest(start)


def upward(code: Code) -> list[str]:
    """Imports that point up."""
    return [
        f"{module} imports {name}"
        for module in code.files
        for name in sorted(code.imports(module, lazy=True))
        if not permitted(module, name, core="model.core" in code.files)
    ]


def permitted(module: str, name: str, *, core: bool = True) -> bool:
    """Whether a module may import another by the rule of app and model.

    core: whether `model` keeps what `app` may import in `model.core`.
    """
    package, target = module.partition(".")[0], name.partition(".")[0]
    if package == target or name == "model":
        return True
    if package == "model" or not core:
        return package != "model"
    of_commands = f"{module}.".startswith("app.cli.") and f"{name}.".startswith("model.cli.")
    return of_commands or f"{name}.".startswith("model.core.")


# Words


def documented(code: Code) -> float:
    """The share of public modules, classes, functions and methods that have a docstring."""
    nodes = [node for tree in code.trees.values() for node in (tree, *_public(tree))]
    return fmean(ast.get_docstring(node) is not None for node in nodes)


def _public(
    parent: ast.Module | ast.ClassDef,
) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def names(code: Code) -> Counter[str]:
    """Occurrences of every identifier; text in quotes and comments is not counted."""
    return Counter(name for tree in code.trees.values() for n in ast.walk(tree) for name in _ids(n))


def _ids(node: ast.AST) -> Iterator[str]:
    """The identifiers that a node itself holds."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
            yield name
        case ast.keyword(arg=str(name)):
            yield name
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.alias():
            yield from node.name.split(".")
            yield from [node.asname] if node.asname else []
        case ast.ImportFrom(module=str(name)):
            yield from name.split(".")


def words(code: Code) -> dict[str, tuple[int, int]]:
    """For every word of WORDS: names that are the word, and names that it is a part of."""
    counted = names(code)
    parts = Counter[str]()
    for name, count in counted.items():
        split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
        parts.update(dict.fromkeys(set(split), count))
    return {word: (counted[word], parts[word] - counted[word]) for word in WORDS}


# Hops


@dataclass(frozen=True, slots=True)
class Way:
    """The way of a short text from the handler to ONNX Runtime."""

    handler: list[str]
    """Functions of app/ and model/ that are active when the work is handed over."""
    engine: list[str]
    """Functions that are active on the engine's thread when the session runs."""
    threads: int

    @property
    def hops(self) -> int:
        """Calls besides the functions that the two threads begin with."""
        return len(self.handler) - 1 + len(self.engine) - 1

    @property
    def crossings(self) -> int:
        """Threads besides the handler's."""
        return self.threads - 1


def way(root: Path = ROOT) -> Way:
    """Traces a request in a process of its own, with the code of a checkout."""
    script = Path(__file__).resolve()
    command = [sys.executable, str(script), "--root", str(root), "--trace"]
    done = subprocess.run(
        command,
        cwd=root,
        env={"PYTHONPATH": str(root), "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=HOPS_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"no trace of a request: {done.stderr}")
    return Way(**json.loads(done.stdout))


class Tracer:
    """Profiles all threads and notes the calls on the way of one request."""

    def __init__(self, root: Path) -> None:
        self.active = False
        self.handler: list[str] = []
        self.engine: list[str] = []
        self._threads: set[int] = set()
        self._folders = tuple(f"{root / name}/" for name in PACKAGES)
        self._root = root

    def install(self) -> None:
        """Profiles this thread and all that start later."""
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Notes a call. The engine's thread is woken through a condition variable."""
        if not self.active or event != "call" or self.engine:
            return
        code = frame.f_code
        if code.co_filename.startswith(self._folders):
            if self._active(frame)[0]:
                self._threads.add(threading.get_ident())
        elif code.co_name == "__enter__" and code.co_filename == threading.__file__:
            names, of_request = self._active(frame)
            if of_request:
                self.handler = names
        elif code.co_name in ("run", "run_with_iobinding") and "onnxruntime" in code.co_filename:
            self.engine, _ = self._active(frame)

    def _active(self, frame: FrameType | None) -> tuple[list[str], bool]:
        """The active functions of app/ and model/, the first one first, without ASGI applications;
        whether there are such: the frame is of a request then."""
        codes: list[CodeType] = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(self._folders):
                codes.insert(0, frame.f_code)
            frame = frame.f_back
        functions = list(dropwhile(lambda code: code.co_name == "__call__", codes))
        names = [f"{Path(c.co_filename).relative_to(self._root)} {c.co_name}" for c in functions]
        return names, len(functions) < len(codes)

    def traced(self) -> dict[str, object]:
        """The fields of a `Way`."""
        assert self.handler, "no work was handed to an engine's thread under the handler"
        assert self.engine, "ONNX Runtime has run nothing"
        return {"handler": self.handler, "engine": self.engine, "threads": len(self._threads)}


async def trace(root: Path) -> dict[str, object]:
    """Serves one short text in this process, and traces it."""
    tracer = Tracer(root)
    tracer.install()

    import asyncio

    import httpx

    from app.main import create_app
    from app.settings import Settings

    app = create_app(Settings(device="cpu", threads=1))
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)
        tracer.active = True
        response = await client.post("/v1/score", json={"input": "Alice was beginning"})
        assert response.status_code == 200, response.text
    return tracer.traced()


# The table


def table(code: Code) -> Iterator[tuple[str, str]]:
    """The rows of the report."""
    lines = {module: code.lines(module) for module in code.files}
    largest = max(lines, key=lines.__getitem__)
    lengths = functions(code)
    yield "files", f"{len(lines)}"
    yield "lines", f"{sum(lines.values()):,}"
    yield "largest file", f"{lines[largest]} ({largest})"
    yield "median file", f"{median(lines.values()):g}"
    yield f"files above {LONG_FILE} lines", _listed(long_files(code))
    yield "functions", f"{len(lengths):,}"
    yield "mean function", f"{fmean(lengths.values()):.2f} lines"
    yield f"functions above {LONG_FUNCTION} lines", _listed(long_functions(code))
    yield f"functions above complexity {COMPLEX}", _listed(complex_functions(code))
    (folder, count), *_ = folder_sizes(code).most_common(1)
    yield "fullest folder", f"{count} ({folder})"
    looped = cycles(code)
    yield "import cycles", _listed([" - ".join(group) for group in looped])
    yield "upward imports", _listed(upward(code))
    longest = [] if looped else chain(code)
    yield "longest import chain", f"{len(longest)} ({' > '.join(longest)})"
    yield "public names documented", f"{documented(code):.1%}"
    for word, (exact, parts) in words(code).items():
        yield f"names `{word}`", f"{exact}, and {parts} as a part"
    traced = way(code.root)
    yield "hops", f"{traced.hops} ({' > '.join(traced.handler)} \u2225 {' > '.join(traced.engine)})"
    yield "thread crossings", f"{traced.crossings}"


def _listed(entries: dict[str, int] | list[str]) -> str:
    """How many entries there are, and which."""
    shown = entries
    if isinstance(entries, dict):
        shown = [f"{name} {count}" for name, count in entries.items()]
    return f"{len(entries)}" + (f" ({'; '.join(shown)})" if entries else "")


def main() -> None:
    """Prints the table, or a trace for `way`."""
    parser = argparse.ArgumentParser(description="Measures the code of app/ and model/.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.root.resolve()
    if options.trace:
        import asyncio

        print(json.dumps(asyncio.run(trace(root))))
        return
    print("| measure | value |\n| --- | --- |")
    for name, value in table(Code.read(root)):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
