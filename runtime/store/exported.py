"""Writes a session's evidence as a file that verifies by itself (`runtime.core.export_format`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import Connection, text

from runtime.core.export_format import (
    BlobLine,
    Counted,
    EndLine,
    ProofLine,
    ReceiptLine,
    RemovedLine,
    SealLine,
    SessionLine,
)
from runtime.core.merkle import Tree
from runtime.core.seals import SealedHead, SignedSeal
from runtime.store.evidence import read_blobs, read_receipts, read_removed
from runtime.store.seals import read_heads, read_leaves, read_seals


def write_export(connection: Connection, session_id: str, write: Callable[[str], object]) -> EndLine:
    """Write an export line by line.

    Args:
        connection: In a `runtime.store.evidence.snapshot`.
        session_id: A session that exists.
        write: Takes each line with its end, in order.

    Returns:
        The last line, with the counts.

    Raises:
        InvalidInput: If a seal in the database is damaged.
    """
    counted = Counted()
    for line in _lines(connection, session_id):
        write(counted.line(line))
    end = counted.end()
    write(end.text())
    return end


def _lines(
    connection: Connection, session_id: str
) -> Iterator[SessionLine | SealLine | ProofLine | RemovedLine | BlobLine | ReceiptLine]:
    last = connection.execute(text("SELECT max(number) FROM seal")).scalar_one_or_none()
    yield SessionLine(session_id=session_id, last_seal=last)
    heads = {} if last is None else _last_heads(connection, session_id, last)
    for signed in _seals(connection, {number for number, _ in heads.values()}) if heads else ():
        yield SealLine(body=signed.body, signature=signed.signature)
    yield from _proofs(connection, heads)
    for row in read_removed(connection, session_id):
        yield RemovedLine(hash=row.hash, at=row.at, reason=row.reason)
    for name, content in read_blobs(connection, session_id):
        yield BlobLine(hash=name, content=content)
    for each in read_receipts(connection, session_id):
        yield ReceiptLine(
            step_id=each.step_id, fence=each.fence, n=each.n, kind=each.kind, hash=each.hash, body=each.body
        )


def _last_heads(
    connection: Connection, session_id: str, until: int
) -> dict[tuple[str, int], tuple[int, SealedHead]]:
    """The last sealed head of each chain, with its seal: it stands for those before it."""
    return {
        (head.step_id, head.fence): (seal, head) for seal, head in read_heads(connection, session_id, until)
    }


def _seals(connection: Connection, covering: set[int]) -> Iterator[SignedSeal]:
    """The seals that cover a session, and those that introduce keys."""
    for number, body, signature in read_seals(connection):
        signed = SignedSeal.read(body, signature)
        if number in covering or signed.seal.public_key is not None:
            yield signed


def _proofs(
    connection: Connection, heads: dict[tuple[str, int], tuple[int, SealedHead]]
) -> Iterator[ProofLine]:
    """One proof per chain; each seal's tree is built once."""
    by_seal: dict[int, list[SealedHead]] = {}
    for number, head in heads.values():
        by_seal.setdefault(number, []).append(head)
    for number, wanted in sorted(by_seal.items()):
        listed = read_leaves(connection, number)
        places = {head: place for place, head in enumerate(listed)}
        tree = Tree([head.leaf for head in listed])
        for head in wanted:
            yield ProofLine(
                seal=number,
                leaf=places[head],
                step_id=head.step_id,
                fence=head.fence,
                n=head.n,
                hash=head.hash,
                path=tuple(each.hex() for each in tree.path(places[head])),
            )
