"""Checks an exported session offline: from the file, and what its reader trusts, alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from runtime.core.chain import Problem, Receipt, Verification, verify
from runtime.core.export_format import (
    AnyLine,
    BlobLine,
    Counted,
    EndLine,
    LeafLine,
    ProofLine,
    ReceiptLine,
    RemovedLine,
    SealLine,
    SealsCopy,
    SessionLine,
    read_line,
)
from runtime.core.merkle import root_from_path
from runtime.core.seals import SealCheck, SealedHead, SealedReceipts, SignedSeal
from runtime.errors import InvalidInput

_L = TypeVar("_L", SessionLine, SealLine, ProofLine, RemovedLine, BlobLine, ReceiptLine)


@dataclass(frozen=True, slots=True)
class ExportVerification:
    """What checking an export found.

    Attributes:
        session_id: Whose evidence it says it is; ``None`` where even that cannot be read.
        found: Counts, and the first entry that does not fit.
        seals: How many seals it carries.
        covered: How many receipts one of them covers.
        tail: How many none covers.
        vouched: Whether somebody outside the file vouches for its seals: a public key, or a copy of them.
        later: How many heads of this session the copy's later seals cover, so that the export is older.
    """

    session_id: str | None
    found: Verification
    seals: int = 0
    covered: int = 0
    tail: int = 0
    vouched: bool = False
    later: int = 0


def verify_export(
    lines: Iterable[bytes], copy: SealsCopy | None = None, trusted: Iterable[str] = ()
) -> ExportVerification:
    """Check an export: its own hash, every receipt, link and content, its seals and their proofs.

    Args:
        lines: The lines of the file, each with its end.
        copy: Seals that the caller holds; each seal of the export must be among them, or be signed with a
            key that they introduce.
        trusted: Public keys that the caller vouches for.
    """
    export = _Export(lines)
    try:
        return export.verify(copy, tuple(trusted))
    except InvalidInput as error:
        problem = Problem(f"line {export.number}", str(error))
        return ExportVerification(export.session_id, Verification(0, 0, problem))


@dataclass(slots=True)
class _Export:
    """Goes through an export once; what is kept is hashes, never contents."""

    lines: Iterable[bytes]
    number: int = 0
    session_id: str | None = None
    _ahead: AnyLine | None = None
    _raw: bytes = b""
    _source: Iterator[bytes] = field(init=False)
    _counted: Counted = field(default_factory=Counted)

    def __post_init__(self) -> None:
        """Begin before the first line."""
        self._source = iter(self.lines)

    def _peek(self) -> AnyLine:
        if self._ahead is None:
            raw = next(self._source, None)
            if raw is None:
                raise InvalidInput("the export ends before its last line; use a copy that is whole")
            self.number += 1
            self._ahead, self._raw = read_line(self.number, raw), raw
        return self._ahead

    def _section(self, kind: type[_L]) -> Iterator[_L]:
        """The lines of one kind that come next."""
        while isinstance(line := self._peek(), kind):
            self._take(line)
            yield line

    def _take(self, line: AnyLine) -> None:
        if isinstance(line, EndLine | LeafLine) or self._counted.line(line).encode() != self._raw:
            raise InvalidInput(f"line {self.number} is not written as an export is; use a copy that is whole")
        self._ahead = None

    def verify(self, copy: SealsCopy | None, trusted: tuple[str, ...]) -> ExportVerification:
        """Go through all of it.

        Raises:
            InvalidInput: If a line cannot be read or is out of place.
        """
        head = self._peek()
        if not isinstance(head, SessionLine):
            raise InvalidInput("the first line names no session; give a file that 'evidence export' wrote")
        self._take(head)
        self.session_id = head.session_id
        read = (SignedSeal.read(line.body, line.signature) for line in self._section(SealLine))
        seals = {signed.seal.number: signed for signed in read}
        heads = [(line.seal, self._proven(line, seals)) for line in self._section(ProofLine)]
        held = [] if copy is None else _heads_of(copy, head.session_id)
        now = [each for each in held if head.last_seal is not None and each[0] <= head.last_seal]
        sealed = SealedReceipts([*heads, *now])
        removed = [line.hash for line in self._section(RemovedLine)]
        found = verify(
            sealed.noting(self._receipts()),
            ((line.hash, line.content) for line in self._section(BlobLine)),
            {},
            self._problems(seals, sealed, copy, trusted),
            removed,
        )
        return ExportVerification(
            session_id=head.session_id,
            found=found,
            seals=len(seals),
            covered=sealed.covered,
            tail=sealed.tail,
            vouched=bool(seals) and (copy is not None or bool(trusted)),
            later=len(held) - len(now),
        )

    def _proven(self, line: ProofLine, seals: Mapping[int, SignedSeal]) -> SealedHead:
        assert self.session_id is not None
        head = SealedHead(self.session_id, line.step_id, line.fence, line.n, line.hash)
        signed = seals.get(line.seal)
        path = [bytes.fromhex(each) for each in line.path]
        root = None if signed is None else root_from_path(head.leaf, line.leaf, signed.seal.leaves, path)
        if signed is None or root is None or root.hex() != signed.seal.root:
            raise InvalidInput(
                f"the proof that seal {line.seal} covers {head.entry} does not hold; use a copy that is whole"
            )
        return head

    def _receipts(self) -> Iterator[Receipt]:
        for line in self._section(ReceiptLine):
            yield Receipt(line.step_id, line.fence, line.n, line.kind, line.body, line.hash)

    def _problems(
        self,
        seals: Mapping[int, SignedSeal],
        sealed: SealedReceipts,
        copy: SealsCopy | None,
        trusted: tuple[str, ...],
    ) -> Iterator[Problem]:
        """What shows beside the chain itself, once that was gone through."""
        yield from _seal_problems(seals, copy, trusted)
        yield from sealed.problems()
        end = self._peek()
        if end != self._counted.end() or self._raw != end.text().encode():
            yield Problem(
                f"line {self.number}", "its counts or its hash are not those of the lines before it"
            )
        elif next(self._source, None) is not None:
            yield Problem(f"line {self.number + 1}", "it stands behind the last line")


def _heads_of(copy: SealsCopy, session_id: str) -> list[tuple[int, SealedHead]]:
    return [
        (number, head)
        for number, heads in copy.leaves.items()
        for head in heads
        if head.session_id == session_id
    ]


def _seal_problems(
    seals: Mapping[int, SignedSeal], copy: SealsCopy | None, trusted: tuple[str, ...]
) -> Iterator[Problem]:
    """Why seals do not stand: signatures, order, keys, and what the copy holds under their numbers."""
    if copy is not None:
        yield from filter(None, [copy.unproven()])
    held = {} if copy is None else copy.seals
    for number, signed in seals.items():
        mine = held.get(number, signed)
        if (mine.body, mine.signature) != (signed.body, signed.signature):
            yield Problem(f"seal {number}", "the copy of the seals holds another one under this number")
    check = SealCheck(trusted, whole=False)
    for number in sorted({**seals, **held}):
        if problem := check.add(held.get(number) or seals[number]):
            yield problem
