"""Documents and code use plain words for order, and documents keep the width of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.measures import PACKAGES, ROOT

WIDTH = 100
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PRESENT = [path for path in DOCUMENTS if ROOT / "docs" / "history" not in path.parents]
"""Without the records, which keep the words of their time."""
CODE = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]

_FENCE = re.compile(r"\s*```")
_ONE_LINK = re.compile(r"\s*(?:[-*] )?(?:\[[^\]]*\]\([^)\s]+\)|\[[^\]]+\]: \S+|<?https?://\S+)\S*")
_ORDER = re.compile(r"\b(?:in\s+front\s+of|behind)\b", re.IGNORECASE)
_ALLOWED = re.compile(
    "|".join(
        [
            r"behind a (?:reverse )?proxy",  # the term of networks
            r"behind one (?:interface|way in)",  # the term of programming
            r"far behind",  # a rank in a comparison, not an order in a text
        ]
    ),
    re.IGNORECASE,
)


def relative(path: Path) -> str:
    """A file's name in the checkout."""
    return path.relative_to(ROOT).as_posix()


def wide_lines(text: str) -> list[str]:
    """Lines above the width, but for table rows, fenced code and links that cannot be broken."""
    wide, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif fenced or line.lstrip().startswith("|") or _ONE_LINK.fullmatch(line):
            continue
        elif len(line) > WIDTH:
            wide.append(f"{number}: {line}")
    return wide


def words_of_order(text: str) -> list[str]:
    """Uses of "in front of" and "behind" with the words around them, but for the allowed ones."""
    allowed = [match.span() for match in _ALLOWED.finditer(text)]
    return [
        text[max(0, match.start() - 30) : match.end() + 30]
        for match in _ORDER.finditer(text)
        if not any(first <= match.start() < last for first, last in allowed)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_documents_are_as_wide_as_code(document: Path) -> None:
    assert wide_lines(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [*PRESENT, *CODE], ids=relative)
def test_before_and_after_are_the_words_for_order(path: Path) -> None:
    assert words_of_order(path.read_text(encoding="utf-8")) == []


def test_a_line_is_wide_unless_it_cannot_be_broken() -> None:
    long = "x" * (WIDTH + 1)
    assert wide_lines(f"{long}\n") == [f"1: {long}"]
    assert wide_lines(f"| {long} |\n```\n{long}\n```\nhttps://{long}\n- [a link]({long})\n") == []
    assert wide_lines(f"[a link]({long}) and words after it\n") != []


def test_terms_with_a_word_of_order_are_allowed() -> None:
    assert words_of_order("A server behind a proxy, far behind the others.") == []
    assert words_of_order("The token in\nfront of it, behind a proxy.") == [
        "The token in\nfront of it, behind a proxy."
    ]
