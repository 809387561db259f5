"""SST-2 parted by sentence: nothing of a held-out sentence is trained on."""

import gzip
import json

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sentences import sentences_of, split_by_sentence

WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(" ".join)


def is_within(text, other):
    """Whether the words of one are a run of the other's."""
    words, others = text.split(), other.split()
    return any(others[i : i + len(words)] == words for i in range(len(others)))


@given(st.sets(WORDS, max_size=12))
def test_sentences_are_the_texts_that_are_in_no_other(texts):
    whole = {text for text in texts if not any(text != other and is_within(text, other) for other in texts)}
    assert sentences_of(texts) == {text: {other for other in whole if is_within(text, other)} for text in texts}


def test_no_phrase_of_a_held_out_sentence_is_trained_on(tmp_path):
    sentences = [f"film {number} is good" for number in range(10)]
    phrases = [f"film {number}" for number in range(10)] + ["is good"]
    rows = [{"text": text, "label": 1} for text in [*phrases, *sentences, sentences[0]]]
    official = [{"text": "a film", "label": 0}, {"text": "bad", "label": 0}]
    for split, lines in {"train": rows, "validation": official}.items():
        with gzip.open(tmp_path / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in lines)
    assert split_by_sentence(tmp_path, tmp_path, validation=3, test=2) == 2
    found = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test")
    }
    assert found["test"][:2] == official
    held_out = {row["text"] for row in found["validation"] + found["test"][2:]}
    assert held_out < set(sentences)
    assert len(held_out) == 5
    left = sorted(row["text"] for row in found["train"])
    numbers = set(range(10)) - {int(sentence.split()[1]) for sentence in held_out}
    assert left == sorted(text for number in numbers for text in (f"film {number}", f"film {number} is good"))
