"""A record under construction: the change that ends an attempt, its receipts, what to publish after it."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.canvas import NodePlan
from runtime.core.chain import Chain, Content, Receipt
from runtime.core.lifecycle import StepEvent
from runtime.core.model import StepStatus
from runtime.engine.outcome import Outcome
from runtime.live.hints import Carrier, Hint
from runtime.store.journal import StepEnd, add_evidence, guard_record
from runtime.store.steps import LoadedStep
from runtime.store.tables import MessageRow
from runtime.store.write import Change


@dataclass
class Recording:
    """One record under construction.

    Attributes:
        step: The step as it was loaded.
        chain: The chain of the attempt that is recorded; its fence is the writer's.
        now_sql: SQL of the database's clock.
        now: The loaded clock plus the time elapsed since, for values that are rows.
        held: Whether this writer started the step and holds its fence.
        messages: Messages that belong to the transcript and that no start has written down.
        follow_ups: What to publish after the commit.
        ends_node: Whether the record ends its node, if the node's inbox has nothing new.
        kept: Whether it was committed.
    """

    step: LoadedStep
    chain: Chain
    now_sql: str
    now: int
    held: bool
    messages: tuple[dict[str, Any], ...] = ()
    change: Change = field(default_factory=Change)
    receipts: list[Receipt] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    follow_ups: list[tuple[Hint, Carrier | None]] = field(default_factory=list)
    ends_node: bool = False
    kept: bool = False

    def hint(self, hint: Hint, unless: Carrier | None = None) -> None:
        """Note what to publish after the commit, unless the step's own delivery brings it along."""
        self.follow_ups.append((hint, unless))

    def hints(self, carried: Container[Carrier] = ()) -> list[Hint]:
        """What to publish after the commit of a step that such a delivery brought."""
        return [hint for hint, unless in self.follow_ups if unless is None or unless not in carried]

    @cached_property
    def plan(self) -> NodePlan:
        """What the end of the step's node sets off."""
        return NodePlan.of(json.loads(self.step.plan))

    def end(self, event: StepEvent, status: StepStatus, outcome: Outcome, **values: Any) -> None:
        """Guard the step's row and write its end; receipts and blobs go with it."""
        error = outcome.output.error
        end = StepEnd(
            event=event,
            status=status,
            head=self.chain.head or self.step.head,
            error=canonical_json(error.model_dump()) if error else None,
            usage=canonical_json(outcome.usage) if outcome.usage else None,
            **values,
        )
        guard_record(self.change, self.step, self.chain.fence, end, self.now_sql, held=self.held)
        self.change.insert(MessageRow, self.messages, once=True)
        add_evidence(self.change, self.step.session_id, self.receipts, self.contents)


def add_finish(recording: Recording, outcome: Outcome, decisions: list[Any]) -> None:
    """Add the progress receipts and the finished receipt of an outcome."""
    for number, snapshot in enumerate(outcome.progress):
        content = Content.of(snapshot)
        recording.contents.append(content)
        recording.receipts.append(
            recording.chain.add("tool_call_progress", {"sequence": number, **content.cited_as("snapshot")})
        )
    fields: dict[str, Any] = {
        "result": outcome.result,
        "policy_decisions": decisions,
        "duration_ms": outcome.duration_ms,
        "artifacts_written": [],
        "at": recording.now,
    }
    if outcome.output.success and outcome.output.data is not None:
        content = Content.of(outcome.output.data)
        recording.contents.append(content)
        fields |= content.cited_as("output")
    if outcome.output.error is not None:
        content = Content.of(outcome.output.error.model_dump())
        recording.contents.append(content)
        fields |= content.cited_as("error")
    if outcome.usage:
        fields["usage"] = outcome.usage
    if outcome.reconciled is not None:
        fields["reconciled"] = outcome.reconciled
    recording.receipts.append(recording.chain.add("tool_call_finished", fields))
