"""The hash chain of evidence: how receipts are linked, hashed and checked.

A chain belongs to one (step, fence): its first receipt cites the last hash of each step that the step
follows, each later one cites its predecessor. A session's evidence is thus a hash DAG shaped like its
work. What belongs to no step is in the session's control chain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from runtime.core.canonical import MAX_DEPTH, canonical_json
from runtime.errors import InvalidInput

RECEIPT_DOMAIN = "agent-runtime/receipt/1\n"
CALL_DOMAIN = "agent-runtime/call/1\n"

INLINE_BYTES = 1024
"""Values whose canonical form is shorter stay in the receipt; longer ones become blobs."""

CONTROL_STEP = "control"
"""Step id under which a session's control chain is filed."""

CONTENTS_REMOVED = "contents_removed"
"""Kind of the receipts in which retention names the contents that it removed, as ``contents``."""


def text_hash(text: str) -> str:
    """SHA-256 of canonical text, as lower-case hex."""
    return sha256(text.encode()).hexdigest()


def receipt_hash(body: str) -> str:
    """Hash of one receipt's canonical body."""
    return sha256((RECEIPT_DOMAIN + body).encode()).hexdigest()


def extend_transcript(digest: str, size: int, text: str) -> tuple[str, int]:
    """The digest and byte count of a transcript after one more message."""
    return text_hash(digest + text), size + len(text.encode())


@dataclass(frozen=True, slots=True)
class Content:
    """A JSON value as evidence keeps it: its canonical text and the hash of that text."""

    text: str
    hash: str

    @staticmethod
    def of(value: Any) -> Content:
        """Canonicalise ``value``.

        Raises:
            InvalidInput: If it is not plain finite JSON.
        """
        text = canonical_json(value)
        return Content(text, text_hash(text))

    @property
    def inline(self) -> bool:
        """Whether the value is small enough to stay in the receipt."""
        return len(self.text) < INLINE_BYTES

    def cited_as(self, name: str) -> dict[str, Any]:
        """The receipt fields that cite this value under ``name``."""
        fields: dict[str, Any] = {f"{name}_hash": self.hash}
        if self.inline:
            fields[name] = json.loads(self.text)
        return fields


@dataclass(frozen=True, slots=True)
class Receipt:
    """One entry of the evidence, ready to be stored."""

    step_id: str
    fence: int
    n: int
    kind: str
    body: str
    hash: str


@dataclass(slots=True)
class Chain:
    """Writes the receipts of one (step, fence).

    Args:
        step_id: The step, or `CONTROL_STEP`.
        fence: The lease under which the receipts are written.
        cites: Hashes that the next receipt cites.
        n: Number of the next receipt.
        common: Fields that every receipt of this chain carries.
    """

    step_id: str
    fence: int
    cites: Sequence[str]
    n: int = 0
    common: Mapping[str, Any] = field(default_factory=dict)

    def add(self, kind: str, fields: Mapping[str, Any]) -> Receipt:
        """Append one receipt and move the head."""
        body = canonical_json(
            {
                **self.common,
                **fields,
                "kind": kind,
                "step_id": self.step_id,
                "fence": self.fence,
                "n": self.n,
                "cites": list(self.cites),
            }
        )
        receipt = Receipt(self.step_id, self.fence, self.n, kind, body, receipt_hash(body))
        self.cites = (receipt.hash,)
        self.n += 1
        return receipt

    @property
    def head(self) -> str | None:
        """Hash of the last receipt, or ``None`` while the chain is empty."""
        return self.cites[0] if self.n else None


def call_digest(
    *,
    request_id: str,
    session_id: str,
    node_id: str,
    call_id: str,
    tool_name: str,
    tool_digest: str,
    principal: str | None,
    input_text: str,
) -> str:
    """Digest of one exact call; a grant fits this and nothing else."""
    return text_hash(
        CALL_DOMAIN
        + canonical_json(
            [request_id, session_id, node_id, call_id, tool_name, tool_digest, principal, input_text]
        )
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """The first entry that does not fit, and why."""

    entry: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying one session's evidence found.

    Attributes:
        receipts: How many receipts were read.
        blobs: How many contents they cite that are stored.
        problem: The first entry that does not fit.
        removed: How many contents they cite that retention removed, as a receipt says.
    """

    receipts: int
    blobs: int
    problem: Problem | None = None
    removed: int = 0

    @property
    def verified(self) -> bool:
        """Whether every receipt and every blob fits."""
        return self.problem is None


def verify(
    receipts: Iterable[Receipt],
    blobs: Iterable[tuple[str, str]],
    heads: Mapping[str, str],
    journal: Iterable[Problem] = (),
    removed: Iterable[str] = (),
) -> Verification:
    """Recompute a session's evidence; everything is gone through once and not kept.

    Args:
        receipts: All receipts; those of one chain in their order.
        blobs: The hash that each stored content is filed under, and the content; read before the receipts.
        heads: Last hash of chains as their keeper holds it, by step id.
        journal: What else does not fit; looked at once the receipts were found whole.
        removed: Hashes of contents that retention is said to have removed; read before the blobs.

    Returns:
        Counts, and the first entry that does not fit.
    """
    check = _Check(set(removed), {name: text_hash(content) == name for name, content in blobs})
    count = 0
    for receipt in receipts:
        count += 1
        if reason := check.receipt(receipt):
            problem: Problem | None = Problem(entry_name(receipt), reason)
            break
    else:
        problem = check.left(heads) or next(iter(journal), None)
    return Verification(count, len(check.blobs_seen), problem, len(check.removed_seen))


def entry_name(receipt: Receipt) -> str:
    """How a problem names a receipt."""
    return f"{receipt.step_id} fence {receipt.fence} n {receipt.n} ({receipt.kind})"


class _Check:
    """State of one verification run: hashes, never contents."""

    def __init__(self, removed: set[str], blobs: dict[str, bool]) -> None:
        self.blobs = blobs
        """Whether the content of each stored blob fits its name."""
        self.blobs_seen: set[str] = set()
        self.removed = removed
        self.removed_seen: set[str] = set()
        self.removals: set[str] = set()
        """What receipts of retention say was removed."""
        self.last: dict[tuple[str, int], tuple[int, str]] = {}
        self.hashes: set[bytes] = set()
        self.awaited: dict[str, str] = {}
        """Hashes that were cited and have not come yet, and the first entry that cites each."""
        self.parse = _BodyReader()

    def receipt(self, receipt: Receipt) -> str | None:
        """Check the next receipt; return what does not fit."""
        if receipt_hash(receipt.body) != receipt.hash:
            return "its hash does not match its body"
        try:
            body = self.parse(receipt.body)
        except (ValueError, RecursionError):
            return "its body is not JSON"
        if not isinstance(body, dict):
            return "its body is not a JSON object"
        stated = (body.get("step_id"), body.get("fence"), body.get("n"), body.get("kind"))
        if stated != (receipt.step_id, receipt.fence, receipt.n, receipt.kind):
            return "it is filed under another step, fence, number or kind than it states"
        reason = self._link(receipt, body) or self._contents(body)
        if receipt.kind == CONTENTS_REMOVED and isinstance(names := body.get("contents"), list):
            self.removals.update(name for name in names if isinstance(name, str))
        self.last[receipt.step_id, receipt.fence] = (receipt.n, receipt.hash)
        self.hashes.add(bytes.fromhex(receipt.hash))
        self.awaited.pop(receipt.hash, None)
        return reason

    def _link(self, receipt: Receipt, body: dict[str, Any]) -> str | None:
        number, before = self.last.get((receipt.step_id, receipt.fence), (-1, None))
        if receipt.n != number + 1:
            return f"number {number + 1} of its chain is missing"
        cites = body.get("cites")
        if not isinstance(cites, list):
            return "it does not say what it cites"
        for cited in cites:
            if not isinstance(cited, str):
                return "it does not say what it cites"
            if cited != before and not self._known(cited):
                self.awaited.setdefault(cited, entry_name(receipt))
        if before is not None and (not cites or cites[0] != before):
            return "it does not cite the receipt before it"
        return None

    def _known(self, cited: str) -> bool:
        try:
            return bytes.fromhex(cited) in self.hashes
        except ValueError:
            return False

    def _contents(self, body: dict[str, Any]) -> str | None:
        for key, value in body.items():
            if key[-5:] != "_hash" or not isinstance(value, str) or key == "workspace_hash":
                continue
            label = key[:-5]
            if label in body:
                text = self.parse.canonical(body[label])
                if text is None or text_hash(text) != value:
                    return f"its inline {label} does not match {key}"
                continue
            if (reason := self._blob(value)) is not None:
                return f"blob {value[:16]} of its {label} {reason}"
        return None

    def _blob(self, name: str) -> str | None:
        whole = self.blobs.get(name)
        if whole:
            self.blobs_seen.add(name)
            return None
        if whole is None and name in self.removed:
            self.removed_seen.add(name)
            return None
        return "is missing" if whole is None else "was changed"

    def left(self, heads: Mapping[str, str]) -> Problem | None:
        """What only shows once all receipts were seen."""
        for cited, name in self.awaited.items():
            return Problem(name, f"it cites {cited[:16]}, which is not in the evidence")
        for name, whole in self.blobs.items():
            if not whole:
                return Problem(f"blob {name}", "its content does not match its name")
        for name in sorted(self.removed - self.removals)[:1]:
            return Problem(f"blob {name}", "it is gone, and no receipt says that retention removed it")
        for step_id, head in heads.items():
            if not self._known(head):
                return Problem(step_id, f"its last receipt {head[:16]} is missing")
        return None


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


class _BodyReader:
    """Reads bodies of receipts, and writes values out of the last one canonically.

    What makes canonical JSON slow is what hardly any body has: numbers with a fraction, signs beyond ASCII,
    deep nesting. Without them the C encoder's text is the canonical one; with any of them `canonical_json`
    is asked.
    """

    def __init__(self) -> None:
        self._plain = True
        decoder = json.JSONDecoder(parse_float=self._float, parse_constant=self._float)
        self._decode = decoder.raw_decode

    def _float(self, literal: str) -> float:
        self._plain = False
        return float(literal)

    def __call__(self, body: str) -> Any:
        """Parse one body.

        Raises:
            ValueError: If it is no JSON.
            RecursionError: If it is nested too deeply.
        """
        self._plain = True
        value, end = self._decode(body)
        if end == len(body):
            return value
        self._plain = False
        return json.loads(body)

    def canonical(self, value: Any) -> str | None:
        """The canonical text of a value out of the body that was parsed last; ``None`` if it has none."""
        try:
            if self._plain:
                text = _encode(value)
                if text.isascii() and text.count("[") + text.count("{") <= MAX_DEPTH:
                    return text
            return canonical_json(value)
        except (InvalidInput, RecursionError):
            return None
