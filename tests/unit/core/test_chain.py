"""A change to any receipt, link or blob is found, and the first entry that does not fit is named."""

import dataclasses
import json
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.core import chain
from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain, Content, Problem, Receipt, call_digest, receipt_hash

BIG = Content.of({"text": "x" * 2000})
SMALL = Content.of({"a": 1})


def evidence():
    first = Chain("one", 1, [])
    receipts = [
        first.add("tool_call_started", SMALL.cited_as("input")),
        first.add("tool_call_finished", BIG.cited_as("output")),
    ]
    second = Chain("two", 1, [first.head])
    receipts.append(second.add("tool_call_started", {}))
    return receipts, {BIG.hash: BIG.text}, {"one": first.head, "two": second.head}


def verify(receipts, blobs, heads, journal=()):
    """Verify with the blobs given by name."""
    return chain.verify(receipts, blobs.items(), heads, journal)


def rewritten(receipt: Receipt, **fields) -> Receipt:
    """A receipt whose body was changed and whose hash was made to fit again."""
    body = canonical_json({**json.loads(receipt.body), **fields})
    return dataclasses.replace(receipt, body=body, hash=receipt_hash(body))


def test_untouched_evidence_verifies():
    found = verify(*evidence())
    assert found.verified
    assert (found.receipts, found.blobs) == (3, 1)


def test_a_changed_body_is_named():
    receipts, blobs, heads = evidence()
    receipts[1] = dataclasses.replace(receipts[1], body=receipts[1].body.replace("one", "uno"))
    assert verify(receipts, blobs, heads).problem.entry.startswith("one fence 1 n 1")


def test_a_changed_body_with_a_fitting_hash_breaks_the_link_after_it():
    receipts, blobs, heads = evidence()
    receipts[0] = rewritten(receipts[0], tool_name="other")
    found = verify(receipts, blobs, heads)
    assert found.problem.entry.startswith("one fence 1 n 1")


def test_a_changed_last_receipt_is_not_the_head_that_the_journal_holds():
    receipts, blobs, heads = evidence()
    receipts[2] = rewritten(receipts[2], tool_name="other")
    assert verify(receipts, blobs, heads).problem.entry == "two"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_receipt_is_noticed(missing):
    receipts, blobs, heads = evidence()
    del receipts[missing]
    assert not verify(receipts, blobs, heads).verified


def test_a_flipped_byte_of_a_blob_is_named():
    receipts, blobs, heads = evidence()
    blobs[BIG.hash] = blobs[BIG.hash].replace("x", "y", 1)
    found = verify(receipts, blobs, heads)
    assert "was changed" in found.problem.reason
    assert found.problem.entry.startswith("one fence 1 n 1")


def test_a_damaged_blob_that_nobody_cites_is_named():
    receipts, blobs, heads = evidence()
    found = verify(receipts, {**blobs, "0" * 64: "no longer what it was"}, heads)
    assert found.problem.entry == f"blob {'0' * 64}"


def test_a_receipt_may_come_before_one_that_it_cites():
    receipts, blobs, heads = evidence()
    assert verify([receipts[2], *receipts[:2]], blobs, heads).verified


def test_a_citation_of_nothing_names_the_receipt_that_cites():
    receipts, blobs, heads = evidence()
    lost = rewritten(receipts[2], cites=["f" * 64])
    found = verify([*receipts[:2], lost], blobs, {"one": heads["one"], "two": lost.hash})
    assert found.problem.entry.startswith("two fence 1 n 0")


@pytest.mark.parametrize("body", ["", "null", "[1]", '{"n":NaN}', "[" * 100_000])
def test_a_body_that_is_no_receipt_is_named_even_if_its_hash_fits(body):
    receipts, blobs, heads = evidence()
    receipts[1] = dataclasses.replace(receipts[1], body=body, hash=receipt_hash(body))
    assert verify(receipts, blobs, heads).problem.entry.startswith("one fence 1 n 1")


@pytest.mark.parametrize("cites", [None, 7, [7], ["not hex"]])
def test_citations_that_are_no_hashes_are_named(cites):
    receipts, blobs, heads = evidence()
    receipts[2] = rewritten(receipts[2], cites=cites)
    assert verify(receipts, blobs, heads).problem.entry.startswith("two fence 1 n 0")


def test_the_journal_is_looked_at_once_the_receipts_were_found_whole():
    receipts, blobs, heads = evidence()
    other = Problem("two", "its stored output does not match")
    assert verify(receipts, blobs, heads, iter([other])).problem is other
    assert verify(receipts[1:], blobs, heads, iter([other])).problem is not other


def test_verifying_keeps_hashes_and_no_contents():
    def long():
        writer = Chain("one", 1, [])
        for number in range(3000):
            yield writer.add("tool_call_progress", {"text": "x" * 2000, "number": number})

    def big():
        for number in range(300):
            content = Content.of(str(number) * 20_000)
            yield content.hash, content.text

    tracemalloc.start()
    try:
        assert chain.verify(long(), big(), {}).receipts == 3000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "6 MB of receipts and 17 MB of blobs went by"
    finally:
        tracemalloc.stop()


def test_a_missing_blob_is_named():
    receipts, _, heads = evidence()
    assert "missing" in verify(receipts, {}, heads).problem.reason


def test_a_receipt_filed_elsewhere_is_noticed():
    receipts, blobs, heads = evidence()
    receipts[2] = dataclasses.replace(receipts[2], fence=2)
    assert "filed under another" in verify(receipts, blobs, heads).problem.reason


def test_a_changed_inline_value_is_noticed():
    receipts, blobs, heads = evidence()
    receipts[0] = rewritten(receipts[0], input={"a": 2})
    assert "inline input" in verify(receipts, blobs, heads).problem.reason


@pytest.mark.parametrize(
    "field",
    ["request_id", "session_id", "node_id", "call_id", "tool_name", "tool_digest", "principal", "input_text"],
)
def test_a_grant_fits_one_exact_call(field):
    call = {
        "request_id": "apr",
        "session_id": "s",
        "node_id": "n",
        "call_id": "c",
        "tool_name": "t",
        "tool_digest": "d",
        "principal": "p",
        "input_text": "{}",
    }
    assert call_digest(**call) != call_digest(**{**call, field: "other"})


# --- inline values are compared by their canonical text, however it is found -----------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@example(1.0)
@example({"é": 1, "z": "\ud800", "a": [2**70, -0.0, 1e21]})
@example("\x7f\u2028")
def test_any_inline_value_that_was_written_verifies(value):
    receipt = Chain("one", 1, []).add(
        "tool_call_started", {"input": value, "input_hash": Content.of(value).hash}
    )
    assert verify([receipt], {}, {}).problem is None


@given(JSON, JSON)
def test_any_other_inline_value_is_named(value, other):
    stated = Content.of(value).hash
    receipt = Chain("one", 1, []).add("tool_call_started", {"input": other, "input_hash": stated})
    assert (verify([receipt], {}, {}).problem is None) == (Content.of(other).hash == stated)


@pytest.mark.parametrize(
    "body",
    [
        '{"cites":[],"fence":1,"input":NaN,"input_hash":"HASH","kind":"k","n":0,"step_id":"one"}',
        '{"cites":[],"fence":1,"input":DEEP,"input_hash":"HASH","kind":"k","n":0,"step_id":"one"}',
    ],
)
def test_an_inline_value_that_has_no_canonical_text_is_named(body):
    body = body.replace("HASH", "0" * 64).replace("DEEP", "[" * 300 + "]" * 300)
    found = verify([Receipt("one", 1, 0, "k", body, receipt_hash(body))], {}, {})
    assert found.problem.reason == "its inline input does not match input_hash"


def test_what_retention_removed_is_counted_and_needs_its_receipt():
    receipts, _, heads = evidence()
    removal = Chain(chain.CONTROL_STEP, 0, []).add(chain.CONTENTS_REMOVED, {"contents": [BIG.hash]})
    found = chain.verify([*receipts, removal], [], heads, removed=[BIG.hash])
    assert (found.problem, found.blobs, found.removed) == (None, 0, 1)
    found = chain.verify(receipts, [], heads, removed=[BIG.hash])
    assert found.problem == Problem(
        f"blob {BIG.hash}", "it is gone, and no receipt says that retention removed it"
    )
    assert "is missing" in chain.verify([*receipts, removal], [], heads).problem.reason
