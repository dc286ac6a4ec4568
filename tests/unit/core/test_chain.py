"""A change to any receipt, link or blob is found, and the first entry that does not fit is named."""

import dataclasses
import json

import pytest

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain, Content, Receipt, call_digest, receipt_hash, verify

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
