"""SST-2 parted by sentence: its training file lists phrases of sentences, its validation file whole sentences.

Phrases that are held out at random are shorter than what a model is tested on, and it trains on others of the same
sentences.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from core.engine.data import Row, Source
from core.engine.readers import read_rows


def split_by_sentence(data: Path, folder: Path, validation: int, test: int) -> int:
    """Hold out whole sentences, with all of their phrases.

    Args:
        data: Folder of SST-2, with `{train,validation}.jsonl.gz`.
        folder: Gets `{train,validation,test}.jsonl`; the test file begins with all rows of SST-2's validation file.
        validation: Sentences of the training file to decide on.
        test: Sentences of the training file to test on, beside the validation file.

    Returns:
        How many rows SST-2's validation file has.
    """
    rows = {" ".join(row["text"].split()): row for row in reversed(_read(data, "train"))}
    parents = sentences_of(rows)
    whole = sorted(text for text, containing in parents.items() if containing == {text})
    random.Random(0).shuffle(whole)
    chosen = {"validation": whole[:validation], "test": whole[validation : validation + test]}
    left = set(whole[validation + test :])
    official = _read(data, "validation")
    _write(folder / "train.jsonl", (row for text, row in rows.items() if parents[text] <= left))
    _write(folder / "validation.jsonl", (rows[text] for text in chosen["validation"]))
    _write(folder / "test.jsonl", [*official, *(rows[text] for text in chosen["test"])])
    return len(official)


def sentences_of(texts: Iterable[str]) -> dict[str, set[str]]:
    """By text, the sentences that it is a run of words of. A sentence is a text that is in no longer one."""
    sentences: dict[str, set[str]] = {}
    by_word: dict[str, set[str]] = defaultdict(set)
    for text in sorted(set(texts), key=lambda text: (-len(text), text)):
        words = text.split()
        candidates = set.intersection(*(by_word[word] for word in words))
        containing = {sentence for sentence in candidates if f" {text} " in f" {sentence} "}
        sentences[text] = containing or {text}
        if not containing:
            for word in words:
                by_word[word].add(text)
    return sentences


def _read(data: Path, split: str) -> list[Row]:
    name = f"{split}.jsonl.gz"
    return read_rows(data / name, Source(name, f"/task/data/{split}"))


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
