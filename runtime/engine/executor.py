"""Runs one worker-driven step: load, decide, start, act, record, publish.

A message only says where to look. Everything that decides is read from SQL and from the workspace file
of this process; a duplicate finds nothing to claim.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace

from runtime.core.chain import Chain, Receipt
from runtime.core.lifecycle import StepEvent
from runtime.core.model import Driver, Effect, ExecutionContext, NodeStatus, StepStatus, ToolOutput
from runtime.engine import advance as advancing
from runtime.engine.acting import call_tool, live_progress
from runtime.engine.calls import call_of, context_of, new_chain
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.park import abandon_step, lose_step, park_step, quarantine_step
from runtime.engine.parts import Parts, worker_name
from runtime.engine.record import (
    Recording,
    add_finish,
    extend_transcript,
    record_call,
    record_turn,
    record_turn_failure,
)
from runtime.engine.tampering import note_tampering
from runtime.engine.transcript import context_message
from runtime.engine.turns import PreparedTurn, make_turn, prepare_node_turn
from runtime.errors import SpecTampered
from runtime.kernel.verdict import Call, Verdict, VerdictKind
from runtime.live.hints import Hint
from runtime.store import journal
from runtime.store.journal import Claim, LoadedStep, StepEnd
from runtime.store.rows import continuation_row, message_row
from runtime.store.tables import ContinuationRow, MessageRow
from runtime.store.write import Change

logger = logging.getLogger(__name__)

MARGIN = 0.5
"""Share of a lease that must be left when the call is about to be made."""


@dataclass(slots=True)
class _Attempt:
    """One attempt at a step, from the load to the record."""

    step: LoadedStep
    call: Call
    verdict: Verdict
    chain: Chain
    loaded_at: float
    prepared: PreparedTurn | None = None
    context: str | None = None
    claimed_at: float = 0.0

    @property
    def now(self) -> int:
        """The database's clock as loaded plus the time elapsed since."""
        return self.step.now + round((time.monotonic() - self.loaded_at) * 1000)


class Executor:
    """Runs steps for the tasks of one worker process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def run_step(self, step_id: str, queues: tuple[str, ...]) -> None:
        """Run a step if it is due, unclaimed and on a queue that this worker consumes.

        Raises:
            SpecTampered: If the workspace file changed; nothing was claimed.
        """
        workspace = self.parts.host.workspace
        try:
            workspace.ensure_unchanged()
        except SpecTampered as error:
            note_tampering(self.parts, error, step_id=step_id)
            raise
        step = journal.load_step(self.parts.database, step_id, workspace.hash)
        loaded_at = time.monotonic()
        if step is None or step.driver != Driver.WORKER or step.queue not in queues:
            return
        if not step.claimable:
            if step.cancelled_at is not None and step.ended_status is None:
                if step.lease_expired:
                    abandon_step(self.parts, step, self._effect(step))
                self.advance(step.session_id)
            return
        if not step.workspace_active:
            logger.error(
                "workspace file %s (hash %s) is not active, so this worker runs nothing; "
                "run 'agent-runtime config activate' with it, or start the worker with the active file",
                workspace.path,
                workspace.hash[:12],
            )
            return
        if step.lease_expired and self._give_up(step):
            return
        self._attempt(step, queues, loaded_at)

    def advance(self, session_id: str) -> None:
        """Promote and settle a session, then publish what became ready."""
        self.parts.crash.reach("advance.before_commit")
        hints = advancing.advance(self.parts.database, session_id)
        self.parts.crash.reach("advance.after_commit")
        self.parts.publisher.publish(hints)

    # --- deciding ---------------------------------------------------------------------------------

    def _effect(self, step: LoadedStep) -> Effect:
        tool = self.parts.host.registry.get(step.tool_name)
        return Effect.READ if step.is_turn else (tool.effect if tool else Effect.ONCE)

    def _give_up(self, step: LoadedStep) -> bool:
        """Handle a step whose holder was lost and which must not simply run again."""
        event = journal.effect_of_crash(self._effect(step), step.crashes, self.parts.settings.max_crashes)
        if event is StepEvent.LOSE:
            lose_step(self.parts, step, "the worker that ran it was lost")
        elif event is StepEvent.QUARANTINE:
            quarantine_step(self.parts, step)
        else:
            return False
        return True

    def _attempt(self, step: LoadedStep, queues: tuple[str, ...], loaded_at: float) -> None:
        ctx = context_of(step)
        prepared = None
        context: str | None = None
        if step.is_turn:
            stored = journal.load_transcript(self.parts.database, step.node_uid, step.messages_before)
            step, transcript = self._with_context(step, stored)
            context = transcript[0] if len(transcript) > len(stored) else None
            prepared = self._prepare(step, ctx, transcript)
        call = call_of(step, ctx, prepared)
        verdict = self.parts.host.decide(call)
        chain = new_chain(step, ctx, self.parts.host.workspace.hash)
        attempt = _Attempt(step, call, verdict, chain, loaded_at, prepared, context)
        receipts = []
        if step.lease_expired:
            receipts.append(
                chain.add(
                    "tool_call_finished", {"result": "crashed", "of_fence": step.fence, "at": attempt.now}
                )
            )
        receipts.append(chain.add("tool_call_started", {**verdict.receipt_fields(), "at": attempt.now}))
        if verdict.kind is VerdictKind.PARK:
            park_step(self.parts, self._recording(attempt, receipts), verdict, attempt.now)
        elif verdict.kind is VerdictKind.REFUSE or (prepared and prepared.failure):
            self._refuse(attempt, receipts)
        elif self._start(attempt, receipts, queues):
            self._act_and_record(attempt)

    def _with_context(self, step: LoadedStep, transcript: list[str]) -> tuple[LoadedStep, list[str]]:
        """Put the results of the nodes named by ``context_from`` before a node's own messages.

        Results never change, so each attempt at the first turn arrives at the same transcript.
        """
        names = json.loads(step.definition)["context_from"] if step.turn_index == 0 else ()
        if not names:
            return step, transcript
        results = journal.load_results(self.parts.database, step.session_id, names)
        own = transcript[1:] if len(transcript) == step.messages_before else transcript
        whole = [context_message(names, results), *own]
        digest, size = "", 0
        for message in whole:
            digest, size = extend_transcript(digest, size, message)
        return replace(step, transcript_digest=digest, transcript_bytes=size), whole

    def _prepare(self, step: LoadedStep, ctx: ExecutionContext, transcript: list[str]) -> PreparedTurn:
        return prepare_node_turn(
            self.parts,
            step.definition,
            transcript,
            ctx,
            transcript_digest=step.transcript_digest,
            transcript_bytes=step.transcript_bytes,
            turn_index=step.turn_index,
        )

    # --- starting ---------------------------------------------------------------------------------

    def _start(self, attempt: _Attempt, receipts: list[Receipt], queues: tuple[str, ...]) -> bool:
        step, database = attempt.step, self.parts.database
        change = Change()
        claim = Claim(worker_name(), self.parts.lease_ms, queues, self.parts.host.workspace.hash)
        journal.guard_start(change, step, claim, attempt.chain.head or "", database.now_sql)
        if attempt.context is not None:
            row = message_row(step.node_uid, 0, "user", attempt.context)
            change.insert(MessageRow, [row], once=True)
        if step.node_status != NodeStatus.RUNNING:
            self._enter_node(change, attempt)
        journal.add_evidence(change, step.session_id, receipts, [attempt.verdict.input])
        self.parts.crash.reach("start.before_commit")
        attempt.claimed_at = time.monotonic()
        if not journal.apply(database, change):
            return False
        self.parts.crash.reach("start.after_commit")
        self.parts.live.announce(step.session_id, step.node_id, receipts)
        return True

    def _enter_node(self, change: Change, attempt: _Attempt) -> None:
        """Note that a node runs: this is its first step, or the first since it waited."""
        step = attempt.step
        change.update(
            "UPDATE node SET status = 'running', reason = NULL WHERE uid = :uid "
            "AND status IN ('pending', 'ready', 'scheduled')",
            uid=step.node_uid,
        )
        if not step.is_turn or step.turn_index > 0:
            return
        kinds = ["wakeup"] if step.node_status == NodeStatus.SCHEDULED else []
        kinds += ["join_ready"] if step.dependencies > 1 else []
        change.insert(
            ContinuationRow,
            [continuation_row(step.session_id, kind, attempt.now, step.node_id) for kind in kinds],
        )

    # --- acting -----------------------------------------------------------------------------------

    def _act_and_record(self, attempt: _Attempt) -> None:
        deadline_s = self._deadline(attempt)
        step, chain, leases = attempt.step, attempt.chain, self.parts.leases
        with leases.holding(step.id, chain.fence, deadline_s + 5, since=attempt.claimed_at) as lease:
            if lease.margin() < leases.lease_s * MARGIN:
                self._release(attempt)
                return
            outcome = self._act(attempt, deadline_s)
        if outcome.result is CallResult.IN_DOUBT:
            lose_step(self.parts, step, "its process died or its time ran out in mid-call", chain=chain)
        else:
            self._commit(attempt, self._recording(attempt, []), outcome)

    def _deadline(self, attempt: _Attempt) -> float:
        if attempt.prepared and attempt.prepared.profile:
            return attempt.prepared.profile.profile.timeouts.total
        tool = self.parts.host.registry.get(attempt.step.tool_name)
        return tool.time_limit if tool else 1.0

    def _act(self, attempt: _Attempt, deadline_s: float) -> Outcome:
        step = attempt.step
        progress = live_progress(self.parts, step.session_id, step.node_id, attempt.chain)
        if attempt.prepared is None:
            return call_tool(
                self.parts, attempt.call, attempt.verdict, idempotency_key=step.id, on_progress=progress
            )
        return make_turn(
            self.parts,
            attempt.prepared,
            attempt=step.attempts + 1,
            on_snapshot=progress,
            deadline_s=deadline_s,
        )

    # --- recording --------------------------------------------------------------------------------

    def _recording(self, attempt: _Attempt, receipts: list[Receipt]) -> Recording:
        return Recording(
            attempt.step,
            attempt.chain,
            self.parts.database.now_sql,
            attempt.now,
            held=not receipts,
            receipts=receipts,
            contents=[attempt.verdict.input] if receipts else [],
        )

    def _refuse(self, attempt: _Attempt, receipts: list[Receipt]) -> None:
        """Record a call that must not run: one transaction with both of its receipts."""
        output = attempt.verdict.output
        denied = attempt.verdict.denied
        if output is None:
            assert attempt.prepared is not None
            output, denied = ToolOutput(success=False, error=attempt.prepared.failure), False
        outcome = Outcome(output, CallResult.DENIED if denied else CallResult.FAILURE)
        self._commit(attempt, self._recording(attempt, receipts), outcome)

    def _commit(self, attempt: _Attempt, recording: Recording, outcome: Outcome) -> None:
        add_finish(recording, outcome, list(attempt.verdict.decisions))
        if not attempt.step.is_turn:
            record_call(recording, outcome)
        elif outcome.output.success:
            record_turn(recording, outcome, self.parts.host.queue_of)
        else:
            record_turn_failure(recording, outcome)
        self.parts.crash.reach("record.before_commit")
        if not journal.apply(self.parts.database, recording.change):
            self._testify(attempt, recording)
            return
        self.parts.crash.reach("record.after_commit")
        self._publish(attempt.step, recording.receipts, recording.hints)

    def _publish(self, step: LoadedStep, receipts: list[Receipt], hints: list[Hint]) -> None:
        self.parts.live.announce(step.session_id, step.node_id, receipts)
        self.parts.crash.reach("publish.before")
        self.parts.publisher.publish(hints)

    def _release(self, attempt: _Attempt) -> None:
        """Give back a claim whose lease ran down before the call was made; nothing happened."""
        recording = self._recording(attempt, [])
        recording.receipts.append(
            attempt.chain.add("tool_call_finished", {"result": "released", "at": attempt.now})
        )
        end = StepEnd(StepEvent.RELEASE, StepStatus.READY, attempt.chain.head, reason="released")
        journal.guard_record(
            recording.change, attempt.step, attempt.chain.fence, end, self.parts.database.now_sql, held=True
        )
        journal.add_evidence(recording.change, attempt.step.session_id, recording.receipts)
        journal.apply(self.parts.database, recording.change)

    def _testify(self, attempt: _Attempt, recording: Recording) -> None:
        """A stale holder adds what it saw to its own chain, as testimony, never as state."""
        if attempt.chain.fence != attempt.step.fence + 1 or recording.receipts[:1] == []:
            return
        if recording.receipts[0].n == 0:
            return  # a refusal that lost its race: nothing of this chain was ever committed
        change = Change()
        journal.add_evidence(change, attempt.step.session_id, recording.receipts, recording.contents)
        journal.apply(self.parts.database, change)
        logger.warning(
            "step %s was taken over while this worker ran it; its result is kept as testimony",
            attempt.step.id,
        )
