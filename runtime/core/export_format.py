"""The files that leave the database: an exported session, and a copy of the seals.

Both are JSON Lines, each line canonical JSON. An export says, in this order: the session, the seals that
cover it with those that introduce keys, a Merkle proof for the head of each sealed chain, what retention
removed, the blobs, the receipts, and a last line with the counts and the SHA-256 of all lines before it.
Texts are exactly as they were hashed. Nothing is read or written here: lines come from whoever opened a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from runtime.core.canonical import canonical_json
from runtime.core.chain import Problem
from runtime.core.merkle import Tree
from runtime.core.seals import Count, SealedHead, Sha256, SignedSeal
from runtime.errors import InvalidInput


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def text(self) -> str:
        """The line as it is written, with its end."""
        return canonical_json(self.model_dump(mode="json")) + "\n"


class SessionLine(_Line):
    """The first line: whose evidence this is, and the number of the last seal when it was written."""

    type: Literal["session"] = "session"
    format: Literal["agent-runtime/evidence/2"] = "agent-runtime/evidence/2"
    session_id: str
    last_seal: Count | None


class SealLine(_Line):
    """A seal as it was signed."""

    type: Literal["seal"] = "seal"
    body: str
    signature: str


class ProofLine(_Line):
    """That the head of a chain is entry ``leaf`` of a seal's tree: its audit path, from the leaf up."""

    type: Literal["proof"] = "proof"
    seal: Count
    leaf: Count
    step_id: str
    fence: int
    n: Count
    hash: Sha256
    path: tuple[Sha256, ...]


class LeafLine(_Line):
    """In a copy of the seals: one head that the seal above covers, in order."""

    type: Literal["leaf"] = "leaf"
    session_id: str
    step_id: str
    fence: int
    n: Count
    hash: Sha256


class RemovedLine(_Line):
    """A content that retention removed."""

    type: Literal["removed"] = "removed"
    hash: Sha256
    at: int
    reason: str


class BlobLine(_Line):
    """A content, under its hash."""

    type: Literal["blob"] = "blob"
    hash: str
    content: str


class ReceiptLine(_Line):
    """A receipt."""

    type: Literal["receipt"] = "receipt"
    step_id: str
    fence: int
    n: int
    kind: str
    hash: str
    body: str


class EndLine(_Line):
    """The last line: how many lines of each kind there are, and the SHA-256 of all bytes before it."""

    type: Literal["end"] = "end"
    seals: Count
    proofs: Count
    removed: Count
    blobs: Count
    receipts: Count
    sha256: Sha256


AnyLine = Annotated[
    SessionLine | SealLine | ProofLine | LeafLine | RemovedLine | BlobLine | ReceiptLine | EndLine,
    Field(discriminator="type"),
]
_LINE: TypeAdapter[AnyLine] = TypeAdapter(AnyLine)


def read_line(number: int, raw: bytes) -> AnyLine:
    """Read one line; its number is for people.

    Raises:
        InvalidInput: If it is none of these.
    """
    try:
        return _LINE.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidInput(
            f"line {number} cannot be read: {first['msg']}; use a copy that is whole"
        ) from None


class Counted:
    """Writes the lines of an export, keeping the counts and the hash that its last line states."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._counts = dict.fromkeys(("seal", "proof", "removed", "blob", "receipt"), 0)

    def line(self, line: SessionLine | SealLine | ProofLine | RemovedLine | BlobLine | ReceiptLine) -> str:
        """The text of the next line."""
        if line.type in self._counts:
            self._counts[line.type] += 1
        text = line.text()
        self._digest.update(text.encode())
        return text

    def end(self) -> EndLine:
        """The last line."""
        counts = self._counts
        return EndLine(
            seals=counts["seal"],
            proofs=counts["proof"],
            removed=counts["removed"],
            blobs=counts["blob"],
            receipts=counts["receipt"],
            sha256=self._digest.hexdigest(),
        )


# --- a copy of the seals --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SealsCopy:
    """Seals that somebody keeps outside the database; whoever holds one trusts it.

    Attributes:
        seals: By their numbers, rising.
        leaves: The heads that a seal covers, where the copy holds them.
    """

    seals: Mapping[int, SignedSeal]
    leaves: Mapping[int, list[SealedHead]]

    @property
    def last(self) -> int:
        """The highest number."""
        return max(self.seals)

    def unproven(self) -> Problem | None:
        """The first seal whose heads in this copy do not make its root."""
        for number, heads in self.leaves.items():
            if problem := root_problem(self.seals[number], heads):
                return problem
        return None


def root_problem(signed: SignedSeal, heads: Iterable[SealedHead]) -> Problem | None:
    """What says that these are not the heads that a seal covers."""
    leaves = [head.leaf for head in heads]
    entry = f"seal {signed.seal.number}"
    if len(leaves) != signed.seal.leaves:
        return Problem(entry, f"it covers {signed.seal.leaves} heads, and {len(leaves)} are listed")
    if Tree(leaves).root.hex() != signed.seal.root:
        return Problem(entry, "the heads that are listed for it do not make its root")
    return None


def read_seals(lines: Iterable[bytes]) -> SealsCopy:
    """Read a copy of the seals.

    Raises:
        InvalidInput: If a line is malformed, a seal comes twice, or there is none.
    """
    seals: dict[int, SignedSeal] = {}
    leaves: dict[int, list[SealedHead]] = {}
    last = -1
    for number, raw in enumerate(lines, start=1):
        line = read_line(number, raw)
        if isinstance(line, SealLine):
            signed = SignedSeal.read(line.body, line.signature)
            if signed.seal.number <= last:
                raise InvalidInput(
                    f"line {number} holds seal {signed.seal.number} behind {last}; sort the copy"
                )
            last = signed.seal.number
            seals[last] = signed
        elif isinstance(line, LeafLine) and seals:
            head = SealedHead(line.session_id, line.step_id, line.fence, line.n, line.hash)
            leaves.setdefault(last, []).append(head)
        else:
            raise InvalidInput(f"line {number} is a {line.type!r}, which a copy of the seals does not hold")
    if not seals:
        raise InvalidInput("the copy holds no seal; write one with 'agent-runtime evidence seals FILE'")
    return SealsCopy(seals, leaves)
