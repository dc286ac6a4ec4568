"""Seals are taken in order, each linked to the one before and signed with the key that counts there."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from runtime.core.chain import Chain
from runtime.core.seals import (
    SEAL_DOMAIN,
    Seal,
    SealCheck,
    SealedHead,
    SealedReceipts,
    SignedSeal,
    key_id,
    public_key,
    sign,
)
from runtime.errors import InvalidInput

ONE, TWO, THREE = (Ed25519PrivateKey.from_private_bytes(bytes([k] * 32)) for k in (1, 2, 3))


def after(last, key, introduced=None, **fields):
    values = {
        "number": 0 if last is None else last.seal.number + 1,
        "at": 0,
        "previous": last and last.hash,
        "key_id": key_id(public_key(key)),
        "public_key": introduced and public_key(introduced),
        **fields,
    }
    return sign(Seal(**values), key)


FIRST = after(None, ONE, ONE)
SECOND = after(FIRST, ONE)
ROTATED = after(SECOND, ONE, TWO)
LAST = after(ROTATED, TWO)


def reason_of(seals, *trusted, whole=True):
    """Why the first seal that does not fit does not."""
    check = SealCheck([public_key(key) for key in trusted], whole=whole)
    return next((found.reason for each in seals if (found := check.add(each))), None)


@pytest.mark.parametrize("trusted", [(), (ONE,), (ONE, TWO)])
def test_seals_in_order_fit_across_a_rotation(trusted):
    assert reason_of([FIRST, SECOND, ROTATED, LAST], *trusted) is None


@pytest.mark.parametrize(
    ("seals", "reason"),
    [
        ([SECOND], "number 0 is missing before it"),
        ([FIRST, ROTATED], "number 1 is missing before it"),
        ([FIRST, FIRST], "its number repeats"),
        ([FIRST, after(FIRST, ONE, previous="0" * 64)], "it does not name the seal before it"),
        ([after(None, ONE)], "it is the first one and introduces no key"),
        ([after(None, ONE, TWO)], "does not count here; no seal before it introduces one"),
        ([FIRST, after(FIRST, TWO)], "does not count here"),
        ([FIRST, after(FIRST, TWO, TWO)], "does not count here"),
        ([FIRST, SECOND, ROTATED, after(ROTATED, ONE)], "does not count here"),
        ([FIRST, SignedSeal(SECOND.seal, SECOND.body, FIRST.signature)], "its signature does not fit key"),
        ([FIRST, SignedSeal(SECOND.seal, SECOND.body + " ", SECOND.signature)], "its signature does not fit"),
    ],
)
def test_a_seal_out_of_its_place_or_under_another_key_is_named(seals, reason):
    assert reason in reason_of(seals)


def test_only_keys_that_somebody_vouches_for_and_those_they_introduced_count():
    assert "vouches" in reason_of([FIRST], TWO)
    forged = after(None, THREE, THREE)
    assert "vouches" in reason_of([forged, after(forged, THREE, ONE)], ONE)


def test_some_seals_may_be_left_out_of_an_export_but_none_that_introduces_a_key():
    assert reason_of([FIRST, ROTATED, LAST], ONE, whole=False) is None
    assert reason_of([SECOND], ONE, whole=False) is None
    assert "does not count" in reason_of([FIRST, LAST], ONE, whole=False)


def test_a_seal_is_signed_by_the_key_that_it_names_alone():
    with pytest.raises(InvalidInput, match="sign it with that key"):
        sign(SECOND.seal, TWO)


def test_the_signature_is_over_the_text_under_its_domain():
    ONE.public_key().verify(bytes.fromhex(SECOND.signature), (SEAL_DOMAIN + SECOND.body).encode())
    assert SignedSeal.read(SECOND.body, SECOND.signature) == SECOND


@pytest.mark.parametrize(
    "body", ["", "null", "{}", "[" * 100_000, SECOND.body[:-1], SECOND.body[:-1] + ',"x":1}']
)
def test_what_is_no_seal_is_refused(body):
    with pytest.raises(InvalidInput, match="this is no seal"):
        SignedSeal.read(body, SECOND.signature)


@pytest.mark.parametrize("fields", [{"number": -1}, {"number": True}, {"root": "00"}, {"key_id": "g" * 16}])
def test_a_seal_says_nothing_malformed(fields):
    with pytest.raises(ValidationError):
        Seal.model_validate({**SECOND.seal.model_dump(), **fields})


def test_a_head_stands_for_its_place_in_its_own_session():
    head = SealedHead("s", "one", 1, 0, "0" * 64)
    others = [
        SealedHead("t", "one", 1, 0, "0" * 64),
        SealedHead("s", "two", 1, 0, "0" * 64),
        SealedHead("s", "one", 2, 0, "0" * 64),
        SealedHead("s", "one", 1, 1, "0" * 64),
        SealedHead("s", "one", 1, 0, "1" * 64),
    ]
    assert len({each.leaf for each in (head, *others)}) == 6


def test_the_entry_of_the_earliest_seal_is_named_first():
    chain = Chain("one", 1, [])
    receipts = [chain.add("k", {}) for _ in range(4)]
    heads = [(2, SealedHead("s", "one", 1, 2, "a" * 64)), (1, SealedHead("s", "one", 1, 1, "b" * 64))]
    check = SealedReceipts(heads)
    assert list(check.noting(receipts)) == receipts
    assert (check.covered, check.tail) == (3, 1)
    (problem,) = check.problems()
    assert problem.entry == "one fence 1 n 1 (k)"
