"""Numbered seals over evidence: what they say, how they are signed, and how they are checked.

A seal covers the heads of all chains that grew since the seal before: a Merkle root over
``(session, step, fence, n, hash)``. A head stands for its whole chain, because each receipt cites the one
before it; so seals together cover everything, and one seal costs what changed. Each names the hash of the one
before it. They are signed with Ed25519 (RFC 8032). The first seal introduces the key that signs it; a seal
that introduces another key is signed with the key before, and from there on only the new one counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from runtime.core.canonical import canonical_json
from runtime.core.chain import Problem, Receipt, text_hash
from runtime.core.merkle import EMPTY_ROOT, leaf_hash
from runtime.errors import InvalidInput

SEAL_DOMAIN = "agent-runtime/seal/1\n"
"""What is hashed and signed is this, followed by the seal's text."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0)]


class Seal(BaseModel):
    """What one seal says.

    Attributes:
        number: From 0, without a gap.
        at: When it was made, in milliseconds since the epoch by the database's clock.
        previous: Hash of the seal before; ``None`` for number 0.
        key_id: Which key signs it.
        public_key: A key that it introduces, as 32 bytes in hex; such a seal covers no heads.
        leaves: How many heads it covers.
        root: The Merkle root over them.
        sessions: How many sessions these heads are of.
        receipts: How many receipts came since the seal before.
        workspaces: Hashes of the workspace files under which workers might run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["agent-runtime/seal/1"] = "agent-runtime/seal/1"
    number: Count
    at: int
    previous: Sha256 | None
    key_id: KeyId
    public_key: PublicKey | None = None
    leaves: Count = 0
    root: Sha256 = EMPTY_ROOT.hex()
    sessions: Count = 0
    receipts: Count = 0
    workspaces: tuple[str, ...] = ()

    @property
    def key_after(self) -> str:
        """Id of the key that the next seal has to be signed with."""
        return self.key_id if self.public_key is None else key_id(self.public_key)


@dataclass(frozen=True, slots=True)
class SignedSeal:
    """A seal with the exact text that was signed.

    Attributes:
        seal: What the text says.
        body: Canonical JSON.
        signature: 64 bytes in hex.
    """

    seal: Seal
    body: str
    signature: str

    @property
    def hash(self) -> str:
        """By which the next seal names this one."""
        return text_hash(SEAL_DOMAIN + self.body)

    @classmethod
    def read(cls, body: str, signature: str) -> Self:
        """Read a stored seal; its signature is not looked at.

        Raises:
            InvalidInput: If the text is no seal.
        """
        try:
            return cls(Seal.model_validate_json(body), body, signature)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise InvalidInput(
                f"this is no seal: {where}: {first['msg']}; use a copy that is whole"
            ) from None


def sign(seal: Seal, key: Ed25519PrivateKey) -> SignedSeal:
    """Sign a seal.

    Raises:
        InvalidInput: If ``key`` is not the one that the seal names.
    """
    if seal.key_id != key_id(public_key(key)):
        raise InvalidInput(f"seal {seal.number} names key {seal.key_id}; sign it with that key")
    body = canonical_json(seal.model_dump(mode="json"))
    return SignedSeal(seal, body, key.sign((SEAL_DOMAIN + body).encode()).hex())


def public_key(key: Ed25519PrivateKey) -> str:
    """The public half of a key, as 32 bytes in hex."""
    return key.public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    """The short name of a public key: the beginning of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def fits(signed: SignedSeal, public: str) -> bool:
    """Whether a seal's signature is that of a public key over the seal's very text."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signed.signature), (SEAL_DOMAIN + signed.body).encode())
    except (InvalidSignature, ValueError):
        return False
    return True


class SealCheck:
    """Goes through seals in their order; each must be signed with the key that counts at that place.

    Args:
        trusted: Public keys that somebody vouches for. If any are given, each seal must be signed with one of
            them, or with a key that a seal signed so introduced. If none are, the seals vouch for their own
            keys, and it is their copy that is trusted.
        whole: Whether all seals from number 0 are to come; else some may be left out, but none that
            introduces a key.
    """

    def __init__(self, trusted: Iterable[str] = (), *, whole: bool) -> None:
        self._known = {key_id(public): public for public in trusted}
        self._trusted = set(self._known) or None
        self._whole = whole
        self.last: SignedSeal | None = None
        self.current: str | None = None
        """Id of the key that counts, once a seal said so."""

    def add(self, signed: SignedSeal) -> Problem | None:
        """Check the next seal."""
        seal = signed.seal
        reason = self._misplaced(seal) or self._unsigned(signed)
        if reason:
            return Problem(f"seal {seal.number}", reason)
        if seal.public_key is not None:
            self.current = seal.key_after
            self._known[self.current] = seal.public_key
            if self._trusted is not None:
                self._trusted.add(self.current)
        self.last = signed
        return None

    def _misplaced(self, seal: Seal) -> str | None:
        expected = 0 if self.last is None else self.last.seal.number + 1
        if seal.number < expected or (self._whole and seal.number > expected):
            return (
                f"number {expected} is missing before it" if seal.number > expected else "its number repeats"
            )
        before = self.last.hash if self.last else None
        if seal.number == expected and seal.previous != before:
            return "it does not name the seal before it"
        if seal.number == 0 and seal.public_key is None:
            return "it is the first one and introduces no key"
        return None

    def _unsigned(self, signed: SignedSeal) -> str | None:
        seal = signed.seal
        known = dict(self._known)
        if seal.number == 0 and seal.public_key is not None:
            known[key_id(seal.public_key)] = seal.public_key
        public = known.get(seal.key_id)
        if public is None or (self.current is not None and seal.key_id != self.current):
            counts = f"{self.current} does" if self.current else "no seal before it introduces one"
            return f"its key {seal.key_id} does not count here; {counts}"
        if self._trusted is not None and seal.key_id not in self._trusted:
            return f"none of the public keys that were given vouches for its key {seal.key_id}"
        return None if fits(signed, public) else f"its signature does not fit key {seal.key_id}"


# --- what seals cover -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SealedHead:
    """One entry of a seal's tree: the last receipt of a chain when the seal was made."""

    session_id: str
    step_id: str
    fence: int
    n: int
    hash: str

    @property
    def leaf(self) -> bytes:
        """Its hash in the tree."""
        entry = canonical_json([self.session_id, self.step_id, self.fence, self.n, self.hash])
        return leaf_hash(entry.encode())

    @property
    def entry(self) -> str:
        """How a problem names it."""
        return f"{self.step_id} fence {self.fence} n {self.n}"


class SealedReceipts:
    """Holds a session's receipts, as they go by, against the heads that seals cover.

    Args:
        heads: The session's heads, each with the number of its seal.

    Attributes:
        covered: How many receipts went by that a seal covers.
        tail: How many that no seal covers yet.
    """

    def __init__(self, heads: Iterable[tuple[int, SealedHead]]) -> None:
        self._expected: dict[tuple[str, int, int], tuple[int, SealedHead]] = {}
        self._last: dict[tuple[str, int], int] = {}
        self._changed: list[tuple[int, Problem]] = []
        self.covered = self.tail = 0
        for number, head in heads:
            chain = (head.step_id, head.fence)
            self._expected[(*chain, head.n)] = (number, head)
            self._last[chain] = max(head.n, self._last.get(chain, -1))

    def noting(self, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """Hand on receipts, comparing them."""
        for receipt in receipts:
            if receipt.n <= self._last.get((receipt.step_id, receipt.fence), -1):
                self.covered += 1
                self._compare(receipt)
            else:
                self.tail += 1
            yield receipt

    def _compare(self, receipt: Receipt) -> None:
        expected = self._expected.pop((receipt.step_id, receipt.fence, receipt.n), None)
        if expected is not None and expected[1].hash != receipt.hash:
            number, head = expected
            reason = f"it is not the receipt {head.hash[:16]} that seal {number} covers"
            self._changed.append((number, Problem(f"{head.entry} ({receipt.kind})", reason)))

    def problems(self) -> Iterator[Problem]:
        """The first entry that does not fit, by the seal that covers it; asked once all receipts went by."""
        missing = [
            (number, Problem(head.entry, f"seal {number} covers it, and it is missing"))
            for number, head in self._expected.values()
        ]
        yield from (problem for _, problem in sorted(self._changed + missing, key=lambda each: each[0])[:1])
