"""Rules 7 and 8: what a stream of server-sent events may look like."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.providers.events import iter_events


def data(*chunks):
    return [event.data for event in iter_events(chunks)]


def test_rule_7_u2028_does_not_split_a_line():
    assert data("data: a\u2028b\u2029c\x85d\x0be\n\n".encode()) == ["a\u2028b\u2029c\x85d\x0be"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_rule_7_lines_end_with_cr_lf_or_both(end):
    assert data(end.join([b"data: a", b"data: b", b"", b"data: c", b""])) == ["a\nb", "c"]


def test_rule_7_a_character_may_straddle_chunks():
    assert data(*(bytes([byte]) for byte in "data: é✓😀\r\n\r\n".encode())) == ["é✓😀"]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b": comment\n\ndata: a\n\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"data: {\ndata: }\n\n", ["{\n}"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"data: a\n\ndata: b", ["a", "b"]),
        (b"id: 1\nretry: 5\nunknown: x\ndata: a\n\n\n\n", ["a"]),
        (b"event: ping\n\n", []),
        (b"", []),
    ],
)
def test_rule_8_legal_variations(stream, expected):
    assert data(stream) == expected


def test_rule_8_the_event_field_is_kept():
    assert [event.event for event in iter_events([b"event: error\ndata: x\n\ndata: y\n\n"])] == [
        "error",
        "message",
    ]


@given(
    st.lists(st.text(), max_size=5),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from(["\n", "\r", "\r\n"]),
)
def test_rule_7_the_cuts_between_chunks_do_not_matter(texts, cuts, end):
    body = "".join(f"data: {json.dumps(text, ensure_ascii=True)}{end}{end}" for text in texts).encode()
    places = sorted({min(cut, len(body)) for cut in cuts})
    chunks = [body[start:stop] for start, stop in zip([0, *places], [*places, len(body)], strict=True)]
    assert [json.loads(item) for item in data(*chunks)] == texts
