"""Entity tags and byte ranges."""

import pytest

from api.conditional import Slice, UnsatisfiableRangeError, is_named, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", Slice(0, 1)),
        ("bytes=2-5", Slice(2, 6)),
        ("bytes=2-", Slice(2, 10)),
        ("bytes=-3", Slice(7, 10)),
        ("bytes=-99", Slice(0, 10)),
        ("bytes=8-99", Slice(8, 10)),
        ("bytes=8-9999999999999999999", Slice(8, 10)),
        # not understood, so the whole is the answer
        ("bytes=0-1,4-5", None),
        ("bytes=5-2", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
        ("items=0-1", None),
        ("bytes=\u0661-\u0662", None),  # digits, but not ASCII
        ("", None),
        pytest.param(f"bytes=0-{'9' * 5000}", None, id="an endless end"),
        pytest.param(f"bytes={'9' * 5000}-", None, id="an endless start"),
        pytest.param(f"bytes=-{'9' * 5000}", None, id="an endless suffix"),
    ],
)
def test_ranges(header, expected):
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_outside(header):
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 10)


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (None, False),
        ("*", True),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b"', False),
        ("a", False),
        ("", False),
    ],
)
def test_entity_tags(header, named):
    assert is_named('W/"a"', header) is named
