"""A bundle: the folder that the server runs. Written whole or not at all, verified when loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.config import ModelConfig
from model.tokenizer import Tokenizer

FORMAT = 5
GRAPH, TOKENIZER, CONFIG = "model.onnx", "tokenizer.json", "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
"""What other tools read beside the tokenizer; older bundles lack it."""
WEIGHTS, NGRAMS = "weights.bin", "ngrams.bin"
"""Where all graphs have large weights from; the n-grams' tables lie apart, since a model that is
trained on may keep them (`TrainConfig.keep_ngrams`)."""
GRAPH_INT8, GRAPH_FLOAT16 = "model.int8.onnx", "model.float16.onnx"
GRAPH_INT8_UNSIGNED = "model.int8-unsigned.onnx"
"""The 8-bit graph whose weights are unsigned bytes (see `byte_products`); older bundles lack it."""
GOLDEN, CARD, CHECKSUMS = "golden.json", "README.md", "checksums.json"


MAX_INT8_PERPLEXITY_RATIO = 1.002
"""The price of 8 bits, perplexity over that in float32, up to which a server takes them unasked."""


class BundleError(Exception):
    """A bundle that is missing, corrupt or incompatible; the message says which and what to do."""


NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
"""What a model may be called: a regular expression."""
NAME_RULE = "letters, digits, '.', '_' and '-', the first a letter or digit"
"""The same in words."""


class BundleConfig(BaseModel):
    """What the server must know of a model besides its graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    created: int
    """Unix time of the export, in seconds."""
    weights: str
    """How weights of products are stored: `float16`, or `int8` if all are on a grid. Tables that
    are only looked up are in bytes, biases in float32."""
    start_id: int
    end_id: int
    unknown_id: int | None
    model: ModelConfig
    int8_perplexity_ratio: float | None = None
    """Perplexity in 8 bits over that in float32, on text that no scale was chosen by."""
    float16_perplexity_ratio: float | None = None
    """The same in float16."""


class Golden(BaseModel):
    """A text's tokens, the start symbol first, and the log-probabilities of all but it.

    `logprobs` are PyTorch's in float32, `int8` those of the 8-bit graph, if there is one.
    """

    ids: list[int]
    logprobs: list[float]
    int8: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. `fingerprint` changes with any of its files."""

    folder: Path
    config: BundleConfig
    tokenizer: Tokenizer
    golden: list[Golden]
    fingerprint: str

    @property
    def graph(self) -> Path:
        """The ONNX file in float32."""
        return self.folder / GRAPH

    @property
    def graph_int8(self) -> Path | None:
        """The ONNX file in 8 bits, weights as signed bytes, if the bundle has one."""
        return self._optional(GRAPH_INT8)

    @property
    def graph_int8_unsigned(self) -> Path | None:
        """The ONNX file in 8 bits, weights as unsigned bytes, if the bundle has one."""
        return self._optional(GRAPH_INT8_UNSIGNED)

    @property
    def graph_float16(self) -> Path | None:
        """The ONNX file in float16, if the bundle has one."""
        return self._optional(GRAPH_FLOAT16)

    def _optional(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.exists() else None


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes a bundle of what `fill` writes into an empty folder; nothing if it raises.

    A bundle that is already at `folder` is replaced; another folder is not: FileExistsError.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CHECKSUMS).exists():
        raise FileExistsError(f"{folder} exists and is no bundle; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(partial)
        sums = {p.name: _digest(p) for p in sorted(partial.iterdir())}
        (partial / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: Path) -> Bundle:
    """Reads and verifies a bundle. Raises BundleError."""
    if not (folder / CHECKSUMS).is_file():
        raise BundleError(
            f"no bundle at {folder}: there is no {CHECKSUMS}; "
            "give the folder that `convlm export` wrote"
        )
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        names = {GRAPH, TOKENIZER, CONFIG, GOLDEN} - set(sums)
    except (ValueError, TypeError) as error:
        raise BundleError(f"corrupt bundle {folder}: {CHECKSUMS} cannot be read: {error}") from None
    if names:
        raise BundleError(f"corrupt bundle {folder}: {CHECKSUMS} does not list {sorted(names)}")
    for name in (GRAPH_INT8, GRAPH_INT8_UNSIGNED, GRAPH_FLOAT16):
        if (folder / name).exists() and name not in sums:
            raise BundleError(f"corrupt bundle {folder}: {CHECKSUMS} does not list {name}")
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"corrupt bundle {folder}: {name} is missing")
        if _digest(path) != expected:
            raise BundleError(
                f"corrupt bundle {folder}: the checksum of {name} is wrong; copy the bundle again"
            )
    return Bundle(
        folder,
        config := _config(folder),
        _tokenizer(folder, config),
        [Golden.model_validate(entry) for entry in json.loads((folder / GOLDEN).read_text())],
        hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16],
    )


def _config(folder: Path) -> BundleConfig:
    raw = json.loads((folder / CONFIG).read_text())
    if raw.get("format") != FORMAT:
        raise BundleError(
            f"incompatible bundle {folder}: its format is {raw.get('format')}, this version reads "
            f"format {FORMAT}; export the checkpoint again"
        )
    try:
        return BundleConfig.model_validate(raw)
    except ValidationError as error:
        raise BundleError(f"incompatible bundle {folder}: {CONFIG}: {error}") from None


def _tokenizer(folder: Path, config: BundleConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER)
    except ValueError as error:
        raise BundleError(f"incompatible bundle {folder}: {error}") from None
    own = (tokenizer.size, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id)
    stated = (config.model.vocabulary, config.start_id, config.end_id, config.unknown_id)
    if own != stated:
        raise BundleError(
            f"incompatible bundle {folder}: tokens, start, end and unknown symbol are {own} in the "
            f"tokenizer and {stated} in {CONFIG}"
        )
    return tokenizer


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
