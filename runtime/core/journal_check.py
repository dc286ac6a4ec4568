"""Holds what the journal says against the evidence that it rests on.

Receipts are chained; the rows that the runtime works with are not. A step's output and error, a node's
result and a node's messages are each named by a hash in some receipt, so a changed byte in one of them is
found here. Nothing is read here: the store hands rows in, one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.chain import Problem, Receipt, extend_transcript, text_hash
from runtime.core.model import NodeStatus, StepStatus
from runtime.errors import AgentRuntimeError


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step of the journal beside its receipts.

    Attributes:
        texts: The stored ``input``, ``output``, ``error`` and ``usage``: canonical JSON or ``None``.
        last: The receipt that ``head`` names, if it exists.
        started: Body of the ``tool_call_started`` receipt of the step's fence, if it exists.
        edited: Hash of the input that a person gave it with an approval, as the control chain says.
    """

    id: str
    kind: str
    turn_index: int
    call_index: int
    fence: int
    status: str
    head: str | None
    input_hash: str | None
    texts: Mapping[str, str | None]
    messages_before: int
    transcript_digest: str
    last: Receipt | None
    started: str | None
    edited: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedNode:
    """One node of the journal beside the receipt that its ``head`` names."""

    uid: str
    node_id: str
    status: str
    head: str | None
    result: str | None
    error: str | None
    last: Receipt | None


def step_problem(step: RecordedStep) -> Problem | None:
    """What in a step's row does not fit its last receipt."""
    given = step.texts["input"]
    if given is not None and step.input_hash is not None and text_hash(given) != step.input_hash:
        return Problem(step.id, "its stored input does not match its hash")
    if step.head is None:
        filled = next((name for name in ("output", "error", "usage") if step.texts[name] is not None), None)
        return Problem(step.id, f"its stored {filled} is in no receipt") if filled else None
    if step.last is None:
        return Problem(step.id, f"its last receipt {step.head[:16]} is missing")
    if step.last.fence != step.fence:
        return Problem(step.id, f"its fence is {step.fence}, that of its last receipt {step.last.fence}")
    started = _body(step.started)
    ran_with = started.get("input_hash", step.input_hash)
    if step.input_hash is not None and step.input_hash not in (ran_with, step.edited):
        return Problem(step.id, "its stored input is not the one that its started receipt names")
    if step.last.kind != "tool_call_finished":
        return None  # it runs: what its row holds is of an earlier attempt, and counts for nothing
    return _finish_problem(step, _body(step.last.body), f"receipt {step.last.n} of fence {step.fence}")


def _finish_problem(step: RecordedStep, body: Mapping[str, Any], receipt: str) -> Problem | None:
    for name in ("output", "error"):
        if _changed(step.texts[name], body.get(f"{name}_hash")):
            return Problem(step.id, f"its stored {name} does not match its {receipt}")
    usage = canonical_json(body["usage"]) if body.get("usage") else None
    if step.texts["usage"] != usage:
        return Problem(step.id, f"its stored usage does not match its {receipt}")
    if (step.status == StepStatus.SUCCEEDED) != (body.get("result") == "success"):
        return Problem(step.id, f"it is {step.status!r}, but its {receipt} says {body.get('result')!r}")
    return None


def node_problem(node: RecordedNode) -> Problem | None:
    """What in a node's row does not fit the receipt that ended the node."""
    entry = f"node {node.node_id}"
    over = node.status in _ENDS
    if node.head is None:  # nothing that leaves receipts ended this node
        return Problem(entry, f"it is {node.status!r}, but no receipt says so") if over else None
    if node.last is None:
        missing = over or node.result is not None
        return Problem(entry, f"its last receipt {node.head[:16]} is missing") if missing else None
    body = _body(node.last.body)
    if over and (ended := _end_of(node.last.kind, body)) != node.status:
        receipt = f"receipt {node.last.n} of {node.last.step_id}"
        return Problem(entry, f"it is {node.status!r}, but its {receipt} says {ended!r}")
    if (node.result is not None or node.status == NodeStatus.COMPLETED) and _changed(
        node.result, body.get("output_hash")
    ):
        return Problem(
            entry, f"its stored result does not match receipt {node.last.n} of {node.last.step_id}"
        )
    holds_error = node.error is not None or node.status == NodeStatus.ERROR
    if holds_error and "error_hash" in body and _changed(node.error, body["error_hash"]):
        return Problem(entry, f"its stored error does not match receipt {node.last.n} of {node.last.step_id}")
    return None


_ENDS = (NodeStatus.COMPLETED, NodeStatus.ERROR)


def _end_of(kind: str, body: Mapping[str, Any]) -> str | None:
    """The status of the node that a receipt ended: a call's finish, a group's join, or a copy into a fork."""
    if kind == "tool_call_finished":
        return NodeStatus.COMPLETED if body.get("result") == "success" else NodeStatus.ERROR
    if kind == "group_joined":
        return NodeStatus.ERROR if "error_hash" in body else NodeStatus.COMPLETED
    return body.get("status") if kind == "node_copied" else None


def _changed(stored: str | None, stated: Any) -> bool:
    """Whether a text is not what a receipt states; a receipt states no hash of ``null``."""
    if stated is None:
        return stored not in (None, "null")
    return stored is None or text_hash(stored) != stated


def _body(text: str | None) -> dict[str, Any]:
    try:
        body = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


# --- transcripts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a started turn says of the transcript that it sent: digest, messages, bytes."""

    digest: str
    messages: int
    size: int

    @staticmethod
    def of(value: Any) -> Manifest | None:
        """The manifest in a turn's input, or ``None`` if that input has none."""
        said = value.get("transcript") if isinstance(value, dict) else None
        if not isinstance(said, dict):
            return None
        digest, messages, size = said.get("digest"), said.get("messages"), said.get("bytes")
        if isinstance(digest, str) and isinstance(messages, int) and isinstance(size, int):
            return Manifest(digest, messages, size)
        return None


@dataclass(slots=True)
class Transcript:
    """Recomputes one node's transcript as its steps are gone through.

    Args:
        node_id: The node, for people.
        messages: Its messages in order: number and canonical text. Taken only as far as needed.
    """

    node_id: str
    messages: Iterator[tuple[int, str]]
    count: int = 0
    size: int = 0
    digest: str = ""
    fitted: int = 0
    first: int | None = None
    answer: tuple[int, str] | None = None

    def _take(self) -> bool:
        taken = next(self.messages, None)
        if taken is None:
            return False
        number, content = taken
        self.first = number if self.first is None else self.first
        self.count += 1
        self.digest, self.size = extend_transcript(self.digest, self.size, content)
        if _body(content).get("role") == "assistant":
            self.answer = taken
        return True

    @property
    def lacks_context(self) -> bool:
        """Whether message 0, with the results of other nodes, is not there: it is stored with a start."""
        return (self.count > 0 or self._take()) and self.first != 0

    def sent(self, manifest: Manifest) -> Problem | None:
        """Compare with what a turn sent, as its started receipt says."""
        while self.count < manifest.messages and self._take():
            pass
        if (self.digest, self.count, self.size) != (manifest.digest, manifest.messages, manifest.size):
            return self._problem(manifest.messages, "what the next turn's started receipt says was sent")
        self.fitted = self.count
        return None

    def reaches(self, digest: str, messages: int) -> Problem | None:
        """See that the transcript comes by a digest that the journal keeps, behind about so many messages."""
        while self.digest != digest:
            if not self._take():
                return self._problem(messages, "the digest that the step behind it keeps")
        self.fitted = self.count
        return None

    def ends(self, last_turn: str | None) -> Problem | None:
        """Compare the last answer with the output of the last turn that succeeded."""
        while self._take():
            pass
        if last_turn is None:
            return None
        if self.answer is None:
            return Problem(f"node {self.node_id}", "its last answer is missing from its messages")
        number, content = self.answer
        if _answers(content, _body(last_turn)):
            return None
        entry = f"message {number} of node {self.node_id}"
        return Problem(entry, "it does not match the output of the turn that it answers")

    def _problem(self, until: int, what: str) -> Problem:
        first, last = self.fitted, max(until - 1, self.fitted)
        place = f"message {last}" if first == last else f"messages {first} to {last}"
        return Problem(f"{place} of node {self.node_id}", f"the transcript up to here does not match {what}")


def _answers(content: str, output: Mapping[str, Any]) -> bool:
    """Whether an assistant message is what a turn's output makes it."""
    message = _body(content)
    try:
        if canonical_json(message) != content:
            return False
    except AgentRuntimeError:
        return False
    calls: list[Any] = []
    if output.get("status") == "tool_request":
        calls = output.get("requested_tools") or [output.get("requested_tool")]
    said = [
        {"name": call.get("name"), "input": call.get("input")} if isinstance(call, dict) else call
        for call in message.pop("tool_calls", [])
    ]
    message.pop("reasoning", None)
    return said == calls and message == {"role": "assistant", "content": output.get("assistant_message")}


@dataclass(slots=True)
class NodeCheck:
    """Goes through the steps of one node in order, and through its messages beside them."""

    node: RecordedNode
    transcript: Transcript
    last_turn: str | None = None

    def step(self, step: RecordedStep, manifest: Manifest | None) -> Problem | None:
        """Check one step; ``manifest`` is that of its started receipt, for worker-driven turns."""
        problem = step_problem(step)
        if problem is not None:
            return problem
        if manifest is not None and step.status == StepStatus.SUCCEEDED:
            self.last_turn = step.texts["output"]
        refused = step.turn_index == 0 and step.status != StepStatus.SUCCEEDED
        if manifest is not None and not (refused and self.transcript.lacks_context):
            return self.transcript.sent(manifest)
        if step.transcript_digest and step.status != StepStatus.PENDING:
            return self.transcript.reaches(step.transcript_digest, step.messages_before)
        return None

    def end(self) -> Problem | None:
        """Check what is left once all steps were seen."""
        return node_problem(self.node) or self.transcript.ends(self.last_turn)
