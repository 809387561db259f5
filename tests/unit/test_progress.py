"""Messages survive the pipe."""

import pytest
from pydantic import ValidationError

from core.errors import shown
from core.progress import MOST_CHARACTERS, Failed, PhaseStarted, StepDone, Succeeded, Warned, decode, encode


@pytest.mark.parametrize(
    "message",
    [
        PhaseStarted(phase="pruning"),
        StepDone(fraction=0.5, step=1, total_steps=2, eta_seconds=1.5, message="x", metrics={"loss": 0.1}),
        Warned(message="line one\nline two"),
        Succeeded(metrics_summary={"a": [1, None]}, artifacts=[]),
        Failed(code="internal", message="ünï"),
    ],
)
def test_messages_are_one_line_and_come_back(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


def test_values_that_are_no_numbers_are_left_out():
    message = StepDone(fraction=0, metrics={"loss": float("nan"), "grad": float("inf"), "sparsity": 0.5})
    assert decode(encode(message)).metrics == {"sparsity": 0.5}


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"type": "other"}', b"\xff", b'{"type": "phase", "phase": 1}'])
def test_anything_else_is_refused(line):
    with pytest.raises(ValidationError):
        decode(line)


@pytest.mark.parametrize("kind", [Warned, lambda message: Failed(code="invalid_input", message=message, param=message)])
def test_any_text_can_be_sent(kind):
    told = decode(encode(kind(message="lone \ud83d, whole \U0001f600")))
    assert told.message == "lone ?, whole \U0001f600"


def test_long_texts_are_cut():
    told = decode(encode(Failed(code="internal", message="x" * 10**6)))
    assert len(told.message) == MOST_CHARACTERS
    assert told.message.endswith("x…")


@pytest.mark.parametrize("value", ["x" * 10**6, ["x" * 100] * 60_000, {"x" * 10**6: "y" * 10**6}, "\ud83d", 3, None])
def test_values_are_shown_briefly(value):
    text = shown(value)
    assert len(text) <= 103
    assert len(repr(value)) > 100 or text == repr(value)
