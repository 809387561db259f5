"""Builtin data: the prose of the language reference that CPython ships."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from core.engine.data import Row, Source

HELD_OUT_EVERY = 8


def python_docs(held_out_parts: int = 1) -> tuple[list[Row], list[list[Row]]]:
    """Text of the reference, as training rows and as so many parts of held-out rows.

    Every eighth topic in alphabetical order is held out, whole, as sentences; the parts take turns with them. The
    other topics give sentences, pairs of neighbouring sentences, and clauses, so that there is enough to learn from;
    a sentence that a held-out topic has too is left out of all three.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    parts: list[dict[str, None]] = [{} for _ in range(held_out_parts)]
    held_out: dict[str, None] = {}
    for number, name in enumerate(names[::HELD_OUT_EVERY]):
        sentences = (sentence for paragraph in _paragraphs(topics[name]) for sentence in paragraph)
        fresh = dict.fromkeys(sentence for sentence in sentences if sentence not in held_out)
        parts[number % held_out_parts] |= fresh
        held_out |= fresh
    train: dict[str, None] = {}
    for name in (name for number, name in enumerate(names) if number % HELD_OUT_EVERY):
        for paragraph in _paragraphs(topics[name]):
            kept = [sentence for sentence in paragraph if sentence not in held_out]
            train |= dict.fromkeys(kept)
            train |= dict.fromkeys(f"{one} {next_one}" for one, next_one in pairwise(kept))
            train |= dict.fromkeys(clause for sentence in kept for clause in _clauses(sentence))
    return _rows(text for text in train if text not in held_out), [_rows(part) for part in parts]


def _rows(texts: Iterable[str]) -> list[Row]:
    source = Source("python-docs", "/task/data")
    return [Row({"text": text}, source, number) for number, text in enumerate(texts, 1)]


def _paragraphs(topic: str) -> Iterator[list[str]]:
    """The prose sentences of each paragraph; grammar and code are mostly not letters, and left out."""
    for paragraph in re.split(r"\n\s*\n", topic):
        sentences = re.split(r"(?<=[.!?:;]) (?=[A-Z\"*`])", " ".join(paragraph.split()))
        yield [s for s in sentences if len(s) >= 30 and sum(c.isalpha() for c in s) > 0.65 * len(s)]


def _clauses(sentence: str) -> list[str]:
    """Parts between commas that say something on their own; none for a sentence without commas."""
    parts = re.split(r"(?<=,) ", sentence)
    return [part for part in parts if len(part) >= 25] if len(parts) > 1 else []
