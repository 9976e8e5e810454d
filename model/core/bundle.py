"""A bundle, the folder that the server runs: written completely or not at all, verified at load."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from model.core.config import ModelConfig, complaint
from model.core.outputs import check_folder, naming
from model.core.tokenizer import Tokenizer

FORMAT = 5
GRAPH, TOKENIZER, CONFIG = "model.onnx", "tokenizer.json", "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
"""Read by other tools beside the tokenizer; older bundles lack it."""
WEIGHTS, NGRAMS = "weights.bin", "ngrams.bin"
"""The large weights of all graphs. The n-grams' tables have a file of their own, since further
training may keep them (`TrainConfig.keep_ngrams`)."""
GRAPH_INT8, GRAPH_FLOAT16 = "model.int8.onnx", "model.float16.onnx"
GRAPH_INT8_UNSIGNED = "model.int8-unsigned.onnx"
"""The 8-bit graph whose weights are unsigned bytes (see `byte_products`); older bundles lack it."""
GOLDEN, CARD, CHECKSUMS = "golden.json", "README.md", "checksums.json"


MAX_INT8_PERPLEXITY_RATIO = 1.002
"""Largest perplexity in 8 bits, relative to float32, at which `auto` chooses 8 bits."""


class BundleError(Exception):
    """A bundle that is missing, corrupt or incompatible; the message says which and what to do."""


NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
"""Names that a model can have: a regular expression."""
NAME_RULE = "letters, digits, '.', '_' and '-', the first a letter or digit"
"""The same rule in words."""


class BundleConfig(BaseModel):
    """Facts about a model that the server needs besides its graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    created: int
    """Unix time of the export, in seconds."""
    weights: str
    """How matrices are stored: `float16`, or `int8` if all are on a grid. Tables that are only
    looked up are stored in bytes, biases in float32."""
    start_id: int
    end_id: int
    unknown_id: int | None
    model: ModelConfig
    int8_perplexity_ratio: float | None = None
    """Perplexity in 8 bits divided by that in float32, on text that was not used for scales."""
    float16_perplexity_ratio: float | None = None
    """The same in float16."""


class _Format(BaseModel):
    """The field that every version of a configuration has."""

    format: int | None = None


class Golden(BaseModel):
    """The tokens of a text, the start symbol first, and the log-probabilities of the others.

    `logprobs` are PyTorch's in float32, `int8` the 8-bit graph's, if there is one.
    """

    ids: Annotated[list[int], Field(min_length=2)]
    logprobs: list[FiniteFloat]
    int8: list[FiniteFloat] | None = None


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
    """Makes a bundle of the files that `fill` writes into an empty folder; none if it raises.

    Replaces a bundle at `folder`. Raises FileExistsError for any other folder, and for a bundle
    with further files in it.
    """
    folder = folder.resolve()  # a link stays one
    check_folder(folder, CHECKSUMS)
    _only_a_bundle(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with naming(folder):
            fill(partial)
            sums = {p.name: _digest(p) for p in sorted(partial.iterdir())}
            (partial / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        partial.chmod(0o755)
        _only_a_bundle(folder)  # once more: writing took a while
        _replace(folder, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(folder: Path, new: Path) -> None:
    """Replaces a folder by another. If that fails, the old folder stays."""
    old = new.with_name(f"{new.name}-before")
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _only_a_bundle(folder: Path) -> None:
    """Raises FileExistsError if a folder has files that are not of a bundle."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if not names:
        return
    if CHECKSUMS not in names:
        raise FileExistsError(f"{folder} exists and is no bundle; choose another folder")
    try:
        names -= {CHECKSUMS, *_sums(folder)}
    except BundleError as error:
        raise FileExistsError(f"{error}; choose another folder") from None
    if names:
        raise FileExistsError(
            f"{folder} holds {min(names)!r} besides a bundle; move it, or choose another folder"
        )


def load(folder: Path) -> Bundle:
    """Reads and verifies a bundle. Raises BundleError."""
    try:
        if not (folder / CHECKSUMS).is_file():
            raise BundleError(
                f"no bundle at {folder}: there is no {CHECKSUMS}; "
                "give the folder that `convlm export` wrote"
            )
        return _verified(folder)
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        reason = error.strerror or error
        raise BundleError(f"the bundle {folder} cannot be read: {name}: {reason}") from None


def _verified(folder: Path) -> Bundle:
    sums = _sums(folder)
    names = {GRAPH, TOKENIZER, CONFIG, GOLDEN} - set(sums)
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
        _golden(folder, config, eight_bits=not {GRAPH_INT8, GRAPH_INT8_UNSIGNED}.isdisjoint(sums)),
        hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16],
    )


_SUMS = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[^/\\]+$")], str])
_GOLDEN = TypeAdapter(Annotated[list[Golden], Field(min_length=1)])


def _sums(folder: Path) -> dict[str, str]:
    """The checksums of a bundle's files by name. Raises BundleError, OSError."""
    try:
        return _SUMS.validate_json((folder / CHECKSUMS).read_bytes())
    except ValidationError as error:
        raise BundleError(f"corrupt bundle {folder}: {CHECKSUMS}: {complaint(error)}") from None


def _config(folder: Path) -> BundleConfig:
    raw = (folder / CONFIG).read_bytes()
    try:
        version = _Format.model_validate_json(raw).format
        if version == FORMAT:
            return BundleConfig.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(f"incompatible bundle {folder}: {CONFIG}: {complaint(error)}") from None
    raise BundleError(
        f"incompatible bundle {folder}: its format is {version}, this version reads format "
        f"{FORMAT}; export the checkpoint again"
    )


def _golden(folder: Path, config: BundleConfig, *, eight_bits: bool) -> list[Golden]:
    try:
        texts = _GOLDEN.validate_json((folder / GOLDEN).read_bytes())
    except ValidationError as error:
        raise BundleError(f"corrupt bundle {folder}: {GOLDEN}: {complaint(error)}") from None
    for number, text in enumerate(texts):
        wanted = len(text.ids) - 1
        known = min(text.ids) >= 0 and max(text.ids) < config.model.vocabulary
        eight = len(text.int8 or ()) == wanted if eight_bits else text.int8 is None
        if not (
            known and text.ids[0] == config.start_id and len(text.logprobs) == wanted and eight
        ):
            raise BundleError(
                f"corrupt bundle {folder}: {GOLDEN}: text {number} does not fit the model"
            )
    return texts


def _tokenizer(folder: Path, config: BundleConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER)
    except ValueError as error:
        raise BundleError(f"incompatible bundle {folder}: {error}") from None
    facts = (tokenizer.size, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id)
    stated = (config.model.vocabulary, config.start_id, config.end_id, config.unknown_id)
    if facts != stated:
        raise BundleError(
            f"incompatible bundle {folder}: tokens, start, end and unknown symbol are {facts} in "
            f"the tokenizer and {stated} in {CONFIG}"
        )
    return tokenizer


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
