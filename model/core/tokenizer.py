"""Tokenizers behind one interface: byte-level BPE and whole words, both as a `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from model.core.outputs import atomic_file

START = "<s>"
END = "</s>"
UNKNOWN = "<unk>"
Kind = Literal["bpe", "word"]

# Every alternative is bounded, so that no text has a piece of unbounded length, and a line break is
# a piece, so that every line begins at a token.
_PIECES = (
    r"\n|'(?:s|t|re|ve|m|ll|d)| ?[\p{L}\p{M}]{1,32}| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]{1,16}"
    r"|[^\S\n]{1,32}(?!\S)|[^\S\n]{1,32}"
)
_WORDS = r"\n|\S+"
_SYMBOLS = re.compile(rf"(?<!\S)(?:{START}|{END}|{UNKNOWN})(?!\S)")
SLICE_CHARACTERS = 1 << 15
"""A longer text is encoded in slices: the library's encoding takes about 100 bytes a character."""
_TEXTS_AT_ONCE = 1024
_PARALLEL_TEXTS = 8
"""Fewer texts are encoded in the caller's thread: handing them to others takes longer."""
_REDONE_PIECES = 4
"""Pieces at the end of a slice that the text after it could still change (`'r` of `'re`)."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's tokens. All int32 [N]; positions count code points of the text.

    ids: token ids. starts, ends: the characters that a token touches, so that two tokens which
    share a character overlap. cuts: characters completed once the token is read, so that the
    pieces `text[cuts[i - 1]:cuts[i]]` join to the text up to its last token's end.
    """

    ids: Ids
    starts: Ids
    ends: Ids
    cuts: Ids


class Tokenizer:
    """Text to token ids and back.

    Special symbols are not recognised in a text: its `</s>` is ordinary pieces, or `<unk>`.
    """

    def __init__(self, backend: Backend) -> None:
        """Raises ValueError for another kind of tokenizer, or one without `<s>` or `</s>`."""
        if not isinstance(backend.model, models.BPE | models.WordLevel):
            kind = type(backend.model).__name__
            raise ValueError(f"its model is {kind}, neither BPE nor WordLevel")
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.kind: Kind = "bpe" if isinstance(backend.model, models.BPE) else "word"
        self.size: int = backend.get_vocab_size()
        self.start_id = self._special(START)
        self.end_id = self._special(END)
        self.unknown_id = self._special(UNKNOWN) if self.kind == "word" else None
        self.token_bytes: list[bytes] = [self._bytes(i) for i in range(self.size)]
        self._lengths = np.array([len(b) for b in self.token_bytes], np.int32)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`. Raises ValueError if it is of another kind."""
        try:
            return cls(Backend.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is no tokenizer for this: {error}") from error

    def save(self, path: Path) -> None:
        """Writes a `tokenizer.json`, completely or not at all. Raises OSError.

        It makes other tools begin every text with the start symbol, as in training.
        """
        self.backend.post_processor = processors.TemplateProcessing(
            single=f"{START} $A",
            pair=f"{START} $A {START}:1 $B:1",
            special_tokens=[(START, self.start_id)],
        )
        with atomic_file(path) as file:
            file.write(self.backend.to_str(pretty=True).encode())

    def save_config(self, path: Path) -> None:
        """Writes a `tokenizer_config.json`, by which Hugging Face's libraries read a tokenizer."""
        facts = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START,
            "eos_token": END,
            "unk_token": None if self.unknown_id is None else UNKNOWN,
            "pad_token": END,
            "clean_up_tokenization_spaces": False,
        }
        path.write_text(json.dumps(facts, indent=2) + "\n")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens and their ids."""
        tokens = [self.backend.id_to_token(i) for i in range(self.size)]
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text."""
        ids = (self.start_id, self.end_id)
        return ids if self.unknown_id is None else (*ids, self.unknown_id)

    def encode(self, text: str, limit: int | None = None) -> Encoded:
        """Tokens of a text of any length; slices do not change them.

        With a limit, the rest of the text is skipped once there are more tokens.
        """
        if len(text) <= SLICE_CHARACTERS:
            (encoding,) = self._batch([text])
            return self._located(text, encoding, len(encoding))
        parts: list[Encoded] = []
        total = 0
        for part, encoding, count in self._slices(text):
            parts.append(self._located(part, encoding, count))
            total += count
            if limit is not None and total > limit:
                break
        if len(parts) == 1:
            return parts[0]
        shifts = np.cumsum([0, *(int(p.cuts[-1]) if len(p.cuts) else 0 for p in parts)])
        return Encoded(
            np.concatenate([p.ids for p in parts]),
            *(
                np.concatenate(
                    [getattr(p, name) + np.int32(s) for p, s in zip(parts, shifts, strict=False)]
                )
                for name in ("starts", "ends", "cuts")
            ),
        )

    def encode_many(self, texts: Sequence[str]) -> list[Encoded]:
        """`encode` for each text; if there are many, the short ones in one parallel call."""
        if len(texts) < _PARALLEL_TEXTS:
            return [self.encode(text) for text in texts]
        short = [i for i, text in enumerate(texts) if len(text) <= SLICE_CHARACTERS]
        encodings = self._batch([texts[i] for i in short])
        encoded = {
            i: self._located(texts[i], encoding, len(encoding))
            for i, encoding in zip(short, encodings, strict=True)
        }
        return [encoded[i] if i in encoded else self.encode(text) for i, text in enumerate(texts)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens; special symbols have none."""
        return b"".join(self.token_bytes[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens, U+FFFD where their bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _slices(self, text: str) -> Iterator[tuple[str, Encoding, int]]:
        """(a slice, its encoding, how many of its tokens count); the next begins after them."""
        offset, size = 0, SLICE_CHARACTERS
        while True:
            part = text[offset : offset + size]
            # as a batch, since `encode` keeps the interpreter to itself for milliseconds
            (encoding,) = self.backend.encode_batch([part], add_special_tokens=False)
            if offset + len(part) == len(text):
                yield part, encoding, len(encoding)
                return
            count = _settled_tokens(encoding)
            if not count:  # a word longer than the slice
                size *= 2
                continue
            yield part, encoding, count
            offset, size = offset + self._end(part, encoding, count), SLICE_CHARACTERS

    def _end(self, part: str, encoding: Encoding, count: int) -> int:
        return int(self._located(part, encoding, count).cuts[-1])

    def _batch(self, texts: list[str]) -> list[Encoding]:
        if self.kind == "bpe":  # the fast call omits offsets, which follow from the bytes
            return list(self.backend.encode_batch_fast(texts, add_special_tokens=False))
        return list(self.backend.encode_batch(texts, add_special_tokens=False))

    def _located(self, text: str, encoding: Encoding, count: int) -> Encoded:
        """The first `count` tokens with their positions in `text`, which was encoded."""
        ids = np.array(encoding.ids[:count], np.int32)
        if self.kind == "word":
            assert self.unknown_id is not None
            ids[np.isin(ids, (self.start_id, self.end_id))] = self.unknown_id
            spans = np.array(encoding.offsets[:count], np.int32).reshape(-1, 2)
            return Encoded(ids, spans[:, 0], spans[:, 1], spans[:, 1])
        return self.with_positions(ids, text)

    def with_positions(self, ids: Ids, text: str) -> Encoded:
        """Tokens with their positions in a text whose UTF-8 begins with their bytes."""
        if text.isascii():
            lengths = self._lengths[ids]
            ends = np.cumsum(lengths, dtype=np.int32)
            return Encoded(ids, ends - lengths, ends, ends)
        raw = np.frombuffer(text.encode(), np.uint8)
        begins = np.append((raw & 0xC0) != 0x80, True)  # a character begins at this byte
        before = np.concatenate([[0], np.cumsum(begins[:-1])])  # characters begun before this byte
        lengths = self._lengths[ids]
        last = np.cumsum(lengths)
        first = last - lengths
        ends = before[last].astype(np.int32)
        starts = (before[first] - ~begins[first]).astype(np.int32)
        cuts = (before[last] - ~begins[last]).astype(np.int32)
        return Encoded(ids, starts, ends, cuts)

    def _special(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no {token}")
        return int(token_id)

    def _bytes(self, token_id: int) -> bytes:
        token: str | None = self.backend.id_to_token(token_id)
        if token is None:
            raise ValueError(
                f"the tokenizer has {self.size} tokens, but none with the id {token_id}"
            )
        if token in (START, END):
            return b""
        if self.kind == "bpe":
            if unknown := set(token) - _BYTE_OF.keys():
                raise ValueError(f"the token {token!r} is not byte-level BPE: {min(unknown)!r}")
            return bytes(_BYTE_OF[character] for character in token)
        return token.encode() if token == "\n" else f" {token}".encode()


def _settled_tokens(encoding: Encoding) -> int:
    """How many tokens of a slice the text after it cannot change."""
    last: int | None = encoding.token_to_word(len(encoding) - 1) if len(encoding) else None
    if last is None or last < _REDONE_PIECES:
        return 0
    span: tuple[int, int] | None = encoding.word_to_tokens(last - _REDONE_PIECES)
    return 0 if span is None else span[1]


def _byte_alphabet() -> dict[str, int]:
    """The byte for each character of byte-level BPE (Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE with `size` tokens, `<s>` (0) and `</s>` (1) among them."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def by_frequency(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """The same byte-level BPE with its tokens numbered by falling frequency in texts.

    An adaptive softmax needs that order. Special symbols stay the first.
    """
    counts = np.zeros(tokenizer.size, np.int64)
    iterator = iter(texts)
    while batch := list(islice(iterator, _TEXTS_AT_ONCE)):
        ids = np.concatenate([encoded.ids for encoded in tokenizer.encode_many(batch)])
        counts += np.bincount(ids, minlength=tokenizer.size)
    counts[: len(tokenizer.special_ids)] = counts.max() + 1
    ranks = np.empty(tokenizer.size, np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(tokenizer.size)
    facts = json.loads(tokenizer.backend.to_str())
    old = facts["model"]["vocab"]
    facts["model"]["vocab"] = {token: int(ranks[old[token]]) for token in old}
    return Tokenizer(Backend.from_str(json.dumps(facts)))


def train_words(texts: Iterable[str], size: int) -> Tokenizer:
    """The `size` most frequent white-space words and the line break; all others are `<unk>`.

    `<unk>` in a text, as in WikiText's, is such an unknown word, not a word of that spelling.
    """
    backend = Backend(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=[START, END, UNKNOWN], show_progress=False
    )
    # a symbol that is counted as a word would get a second id, its first one left empty
    backend.train_from_iterator((_SYMBOLS.sub("", text) for text in texts), trainer)
    return Tokenizer(backend)
