"""What a turn says to the model: the node's transcript, and what is new since it was written down.

New are the results of other nodes (before a node's own messages), the answers of several tool calls, and the
messages of the node's inbox. Assembling is repeatable: each attempt at a turn arrives at the same transcript,
or at a longer one if the inbox grew before anything was started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from runtime.core.chain import extend_transcript
from runtime.engine.transcript import context_message
from runtime.store.engine import Database
from runtime.store.rows import message_row
from runtime.store.steps import LoadedStep, Predecessors, load_results, load_signals, load_transcript


@dataclass(frozen=True, slots=True)
class AssembledTurn:
    """A turn's transcript.

    Attributes:
        step: The step, with the digest, size, count and citations of this transcript.
        transcript: Its messages as canonical JSON, in order.
        rows: Messages that the start writes down.
    """

    step: LoadedStep
    transcript: list[str]
    rows: tuple[dict[str, Any], ...] = ()


def assemble(database: Database, step: LoadedStep, opened: Predecessors | None) -> AssembledTurn:
    """Assemble the transcript of a turn.

    Args:
        database: Where to read.
        step: The turn.
        opened: For a turn that starts from `pending`: what it waited for.
    """
    if opened is None:
        assembled = AssembledTurn(step, step.transcript.split("\n") if step.transcript else [])
    else:  # only now that nothing is open it is whole
        assembled = AssembledTurn(step, load_transcript(database, step.node_uid, step.messages_before))
        assembled = _after_calls(assembled, opened)
    if step.turn_index == 0:
        assembled = _with_context(database, assembled)
    if step.inbox > step.taken:
        assembled = _with_inbox(database, assembled)
    return assembled


def _after_calls(turn: AssembledTurn, opened: Predecessors) -> AssembledTurn:
    step = turn.step
    digest, size = step.transcript_digest, step.transcript_bytes
    if step.turn_index > 0:
        for answer in turn.transcript[-step.siblings :]:
            digest, size = extend_transcript(digest, size, answer)
    cites = json.dumps(opened.heads)
    return replace(turn, step=replace(step, cites=cites, transcript_digest=digest, transcript_bytes=size))


def _with_context(database: Database, turn: AssembledTurn) -> AssembledTurn:
    step = turn.step
    names = json.loads(step.definition)["context_from"]
    if not names:
        return turn
    context = context_message(names, load_results(database, step.session_id, names))
    # The message of number 0 is there already if an earlier attempt was started.
    own = turn.transcript[1:] if len(turn.transcript) == step.messages_before else turn.transcript
    whole = [context, *own]
    digest, size = "", 0
    for message in whole:
        digest, size = extend_transcript(digest, size, message)
    return AssembledTurn(
        replace(step, transcript_digest=digest, transcript_bytes=size),
        whole,
        (*turn.rows, message_row(step.node_uid, 0, "user", context)),
    )


def _with_inbox(database: Database, turn: AssembledTurn) -> AssembledTurn:
    step = turn.step
    signals = load_signals(database, step.node_uid, step.taken, step.inbox)
    digest, size, number = step.transcript_digest, step.transcript_bytes, step.messages_before
    rows = []
    for role, content in signals:
        digest, size = extend_transcript(digest, size, content)
        rows.append(message_row(step.node_uid, number, role, content))
        number += 1
    return AssembledTurn(
        replace(
            step, transcript_digest=digest, transcript_bytes=size, messages_before=number, taken=step.inbox
        ),
        [*turn.transcript, *(content for _, content in signals)],
        (*turn.rows, *rows),
    )
