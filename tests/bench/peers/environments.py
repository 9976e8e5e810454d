"""Environments of the servers that are no part of convlm's own, made once in `.venv-peers/`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_FOLDER = ROOT / ".venv-peers"
_REQUIREMENTS = Path(__file__).parent / "requirements"


def python(name: str) -> Path:
    """The interpreter of an environment with requirements/<name>.txt, made if need be."""
    locked = _REQUIREMENTS / f"{name}.txt"
    folder = _FOLDER / name
    stamp, made_of = folder / ".made-of", hashlib.sha256(locked.read_bytes()).hexdigest()
    interpreter = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != made_of:
        print(f"making {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [interpreter, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*install, "--require-hashes", "-r", locked], check=True)
        stamp.write_text(made_of)
    return interpreter
