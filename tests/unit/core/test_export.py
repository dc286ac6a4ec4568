"""An exported session verifies from its file alone; whatever is changed in it is found."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.core.canonical import canonical_json
from runtime.core.chain import CONTENTS_REMOVED, CONTROL_STEP, Chain, Content, receipt_hash
from runtime.core.export_check import verify_export
from runtime.core.export_format import (
    BlobLine,
    Counted,
    LeafLine,
    ProofLine,
    ReceiptLine,
    RemovedLine,
    SealLine,
    SessionLine,
    read_seals,
)
from runtime.core.merkle import Tree
from runtime.core.seals import Seal, SealedHead, key_id, public_key, sign
from runtime.errors import AgentRuntimeError, InvalidInput

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([k] * 32)) for k in (1, 2))
BIG = Content.of({"text": "x" * 2000})
GONE = Content.of({"text": "y" * 2000})
ELSEWHERE = SealedHead("another", "two", 1, 0, "e" * 64)


def seal_after(last, heads=(), introduced=None, key=KEY):
    return sign(
        Seal(
            number=0 if last is None else last.seal.number + 1,
            at=0,
            previous=last and last.hash,
            key_id=key_id(public_key(key)),
            public_key=introduced and public_key(introduced),
            leaves=len(heads),
            root=Tree([head.leaf for head in heads]).root.hex(),
        ),
        key,
    )


class Evidence:
    """A small session under seals: two steps and a control chain, a blob, a removed content, a tail."""

    def __init__(self, *, key=KEY, output=None, at=1):
        one, two = Chain("one", 1, []), Chain("two", 1, [])
        control = Chain(CONTROL_STEP, 0, [])
        self.receipts = [
            one.add("tool_call_started", {**BIG.cited_as("input"), "at": at}),
            one.add("tool_call_finished", (output or GONE).cited_as("output")),
        ]
        two.cites = [one.head]
        self.receipts.append(two.add("tool_call_started", {"session_id": "s"}))
        self.receipts.append(
            control.add(CONTENTS_REMOVED, {"contents": [GONE.hash], "at": 5, "reason": "old"})
        )
        heads = [SealedHead("s", each.step_id, each.fence, each.n, each.hash) for each in self.receipts[1:3]]
        self.listed = [heads[0], ELSEWHERE, heads[1]]
        self.first = seal_after(None, introduced=key, key=key)
        self.seal = seal_after(self.first, self.listed, key=key)
        self.last_seal = 1

    def lines(self):
        tree = Tree([head.leaf for head in self.listed])
        yield SessionLine(session_id="s", last_seal=self.last_seal)
        for signed in (self.first, self.seal):
            yield SealLine(body=signed.body, signature=signed.signature)
        for place, head in enumerate(self.listed):
            if head.session_id == "s":
                yield ProofLine(
                    seal=1,
                    leaf=place,
                    step_id=head.step_id,
                    fence=head.fence,
                    n=head.n,
                    hash=head.hash,
                    path=tuple(each.hex() for each in tree.path(place)),
                )
        yield RemovedLine(hash=GONE.hash, at=5, reason="old")
        yield BlobLine(hash=BIG.hash, content=BIG.text)
        for each in self.receipts:
            yield ReceiptLine(
                step_id=each.step_id,
                fence=each.fence,
                n=each.n,
                kind=each.kind,
                hash=each.hash,
                body=each.body,
            )

    def export(self, without=lambda line: False, change=lambda line: line):
        """The file's lines, with its last line fitting whatever was changed."""
        counted = Counted()
        written = [counted.line(change(line)) for line in self.lines() if not without(line)]
        return [text.encode() for text in [*written, counted.end().text()]]

    def seals(self, *, leaves=True, numbers=(0, 1)):
        """A copy of the seals."""
        lines = []
        for signed, heads in ((self.first, []), (self.seal, self.listed)):
            if signed.seal.number in numbers:
                lines.append(SealLine(body=signed.body, signature=signed.signature))
                lines += [
                    LeafLine(session_id=h.session_id, step_id=h.step_id, fence=h.fence, n=h.n, hash=h.hash)
                    for h in (heads if leaves else [])
                ]
        return read_seals([line.text().encode() for line in lines])


EVIDENCE = Evidence()
WHOLE = b"".join(EVIDENCE.export())


def problem(lines, copy=None, *keys):
    return verify_export(lines, copy, [public_key(key) for key in keys]).found.problem


def test_a_whole_export_verifies_and_states_what_is_sealed_and_what_is_not():
    found = verify_export(EVIDENCE.export(), EVIDENCE.seals(), [public_key(KEY)])
    assert found.found.problem is None
    assert (found.session_id, found.seals, found.covered, found.tail, found.vouched) == ("s", 2, 3, 1, True)
    assert (found.found.receipts, found.found.blobs, found.found.removed, found.later) == (4, 1, 1, 0)


def test_without_a_copy_or_a_key_nothing_vouches_for_it():
    found = verify_export(EVIDENCE.export())
    assert (found.found.problem, found.vouched) == (None, False)


def test_a_newer_copy_tells_of_later_heads():
    copy = EVIDENCE.seals()
    earlier = Evidence()
    earlier.last_seal = 0
    found = verify_export(earlier.export(), copy)
    assert (found.found.problem, found.later) == (None, 2)


@pytest.mark.parametrize("copy", [None, EVIDENCE.seals()])
@pytest.mark.parametrize("key", [KEY, None])
def test_an_export_made_up_with_another_key_is_refused_by_the_key_or_the_copy(copy, key):
    forged = Evidence(key=OTHER, at=2)
    found = verify_export(forged.export(), copy, [public_key(KEY)] if key else [])
    if copy is None and key is None:
        assert found.found.problem is None, "nothing outside the file says otherwise"
        assert not found.vouched
    else:
        assert found.found.problem.entry in ("seal 0", "seal 1")


def test_a_recomputed_chain_does_not_fit_its_proofs():
    forged = Evidence(at=2)
    forged.first, forged.seal, forged.listed = EVIDENCE.first, EVIDENCE.seal, EVIDENCE.listed
    assert "seal 1 covers" in problem(forged.export()).reason


@pytest.mark.parametrize("dropped", [("one", 1), ("two", 0)])
def test_a_chain_that_was_cut_off_is_found_with_its_proof(dropped):
    def cut(line):
        return isinstance(line, ReceiptLine) and (line.step_id, line.n) == dropped

    assert problem(EVIDENCE.export(cut)) is not None


def test_a_chain_that_was_cut_off_with_its_proof_is_found_by_the_copys_list():
    def cut(line):
        return isinstance(line, ReceiptLine | ProofLine) and line.step_id == "two"

    assert problem(EVIDENCE.export(cut), None, KEY) is None, "nothing in the file speaks of it any more"
    assert problem(EVIDENCE.export(cut), EVIDENCE.seals()).entry == "two fence 1 n 0"


def test_a_swapped_blob_is_found():
    def swap(line):
        return line.model_copy(update={"content": GONE.text}) if isinstance(line, BlobLine) else line

    assert "was changed" in problem(EVIDENCE.export(change=swap)).reason


def test_a_missing_blob_is_not_taken_for_a_removed_one():
    assert "is missing" in problem(EVIDENCE.export(lambda line: isinstance(line, BlobLine))).reason
    assert "is missing" in problem(EVIDENCE.export(lambda line: isinstance(line, RemovedLine))).reason


def test_a_rewritten_receipt_is_found():
    def rewrite(line):
        if isinstance(line, ReceiptLine) and line.n == 0 and line.step_id == "one":
            body = canonical_json({**json.loads(line.body), "at": 7})
            return line.model_copy(update={"body": body, "hash": receipt_hash(body)})
        return line

    assert problem(EVIDENCE.export(change=rewrite)).entry.startswith("one fence 1 n 1")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ProofLine, {"leaf": 1}),
        (ProofLine, {"seal": 0}),
        (ProofLine, {"seal": 7}),
        (ProofLine, {"path": ()}),
        (ProofLine, {"hash": "0" * 64}),
        (SealLine, {"signature": "0" * 128}),
        (SealLine, {"signature": "no hex"}),
        (SealLine, {"body": "{}"}),
        (SealLine, {"body": "[" * 100_000}),
        (SessionLine, {"session_id": "another"}),
    ],
)
def test_proofs_and_seals_that_do_not_hold_are_named(kind, fields):
    def change(line):
        return line.model_copy(update=fields) if isinstance(line, kind) else line

    assert problem(EVIDENCE.export(change=change)) is not None


@given(st.data())
@example(None)
def test_no_byte_can_be_changed(data):
    """Any flipped byte is found, and nothing but a verdict comes out."""
    places = [0, len(WHOLE) - 1] if data is None else [data.draw(st.integers(0, len(WHOLE) - 1))]
    for place in places:
        flip = 1 if data is None else data.draw(st.integers(1, 255))
        damaged = WHOLE[:place] + bytes([WHOLE[place] ^ flip]) + WHOLE[place + 1 :]
        assert problem(damaged.splitlines(keepends=True)) is not None
        assert problem(damaged.split(b"\n"), EVIDENCE.seals(), KEY) is not None


@given(st.integers(0, len(WHOLE) - 1))
def test_no_end_can_be_cut_off(length):
    assert problem(WHOLE[:length].splitlines(keepends=True)) is not None


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 12))
def test_no_lines_can_be_put_in(junk, place):
    lines = EVIDENCE.export()
    lines[place:place] = junk
    assert (problem(lines) is None) == (not junk)


@pytest.mark.parametrize("number", range(len(EVIDENCE.export())))
def test_no_line_can_be_left_out_or_repeated(number):
    lines = EVIDENCE.export()
    assert problem([*lines[:number], *lines[number + 1 :]]) is not None
    assert problem([*lines[: number + 1], *lines[number:]]) is not None


# --- copies of the seals --------------------------------------------------------------------------

COPY = b"".join(
    line.text().encode()
    for line in (
        SealLine(body=EVIDENCE.first.body, signature=EVIDENCE.first.signature),
        SealLine(body=EVIDENCE.seal.body, signature=EVIDENCE.seal.signature),
    )
)


@given(st.integers(0, len(COPY) - 2), st.integers(1, 255))
def test_a_changed_byte_of_a_copy_is_refused_or_fits_nothing(place, flip):
    """The last byte is a line's end, which says nothing."""
    damaged = COPY[:place] + bytes([COPY[place] ^ flip]) + COPY[place + 1 :]
    try:
        copy = read_seals(damaged.splitlines(keepends=True))
    except AgentRuntimeError:
        return
    same = read_seals(COPY.splitlines(keepends=True))
    assert copy == same or problem(EVIDENCE.export(), copy) is not None


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"\n"],
        [b"{}"],
        [b'{"type":"leaf"}'],
        [LeafLine(session_id="s", step_id="a", fence=1, n=0, hash="0" * 64).text().encode()],
        [SessionLine(session_id="s", last_seal=None).text().encode()],
        [*COPY.splitlines(), *COPY.splitlines()],
    ],
)
def test_what_is_no_copy_of_the_seals_is_refused(lines):
    with pytest.raises(InvalidInput):
        read_seals(lines)


@pytest.mark.parametrize("numbers", [(1,), (0,)])
def test_a_copy_with_some_seals_and_a_key_serves_as_well(numbers):
    assert problem(EVIDENCE.export(), EVIDENCE.seals(numbers=numbers), KEY) is None


def test_a_list_of_heads_that_does_not_make_its_root_is_named():
    copy = EVIDENCE.seals()
    copy.leaves[1].reverse()
    assert problem(EVIDENCE.export(), copy).entry == "seal 1"
