"""Runs one worker-driven step: load, decide, start, act, record, publish.

A message only says where to look. Everything that decides is read from SQL and from the workspace file
of this process; a duplicate finds nothing to claim.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Container
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from runtime.core.chain import Chain, Receipt
from runtime.core.lifecycle import StepEvent
from runtime.core.model import (
    Driver,
    Effect,
    ExecutionContext,
    NodeStatus,
    RetryPolicy,
    StepStatus,
    ToolOutput,
)
from runtime.core.retry import next_delay
from runtime.engine import advance as advancing
from runtime.engine.acting import call_tool, live_progress
from runtime.engine.assembling import assemble
from runtime.engine.calls import call_of, context_of, new_chain
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.park import abandon_step, park_step, put_in_doubt, quarantine_step, takeover
from runtime.engine.parts import Parts, worker_name
from runtime.engine.reconciling import reconciled
from runtime.engine.record import record_call, record_turn, record_turn_failure
from runtime.engine.recording import Recording, add_finish
from runtime.engine.tampering import note_tampering
from runtime.engine.testimony import testify
from runtime.engine.turns import PreparedTurn, make_turn, prepare_node_turn
from runtime.errors import ErrorCode, SpecTampered
from runtime.kernel.verdict import Call, Verdict, VerdictKind
from runtime.live.hints import AdvanceHint, Carrier, Hint
from runtime.providers.errors import ProviderError
from runtime.store import journal
from runtime.store.clock import Clock
from runtime.store.crashpoints import BEFORE_PUBLISH, Transition
from runtime.store.journal import Claim, StepEnd
from runtime.store.rows import continuation_row
from runtime.store.steps import LoadedStep, Predecessors, load_predecessors, load_step
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
    clock: Clock
    prepared: PreparedTurn | None = None
    opened: Predecessors | None = None
    messages: tuple[dict[str, Any], ...] = ()
    carried: Container[Carrier] = ()
    claimed_at: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether the call is let through, and can be made."""
        failed = self.prepared is not None and self.prepared.failure is not None
        return self.verdict.kind is VerdictKind.RUN and not failed

    def next_delay(
        self, policy: RetryPolicy, code: str, *, retryable: bool, asked_s: float | None = None
    ) -> int | None:
        """Milliseconds until the next attempt, if there is to be one."""
        started = self.step.now if self.step.started_at is None else self.step.started_at
        return next_delay(
            policy,
            attempt=self.step.attempts + 1,
            code=code,
            retryable=retryable,
            elapsed_ms=self.now - started,
            chance=random.random(),  # noqa: S311 - spreads retries
            asked_s=asked_s,
        )

    @property
    def now(self) -> int:
        """The database's clock as loaded plus the time elapsed since."""
        return self.clock.later(self.step.now, self.loaded_at)


class Executor:
    """Runs steps for the tasks of one worker process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def run_step(self, step_id: str, queues: tuple[str, ...], carried: Container[Carrier] = ()) -> None:
        """Run a step if it is due, unclaimed and on a queue that this worker consumes.

        Args:
            step_id: The step.
            queues: What this worker consumes by its own configuration.
            carried: Hints that this delivery of the step brings along, for what follows from its end.

        Raises:
            SpecTampered: If the workspace file changed; nothing was claimed.
        """
        workspace = self.parts.host.workspace
        try:
            workspace.ensure_unchanged()
        except SpecTampered as error:
            note_tampering(self.parts, error, step_id=step_id)
            raise
        step = load_step(self.parts.database, step_id, workspace.hash)
        loaded_at = time.monotonic()
        if step is None or step.driver != Driver.WORKER or step.queue not in queues:
            return
        opened = None
        if step.perhaps_open:
            opened = load_predecessors(self.parts.database, step)
        if not step.claimable and opened is None:
            if step.cancelled_at is not None and step.ended_status is None:
                if step.lease_expired:
                    abandon_step(self.parts, step, self._effect(step), self._now(step, loaded_at))
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
        if step.lease_expired and self._give_up(step, loaded_at):
            return
        self._attempt(step, queues, loaded_at, opened, carried)

    def advance(self, session_id: str) -> None:
        """Promote and settle a session, then publish what became ready."""
        hints = advancing.advance(self.parts.database, session_id)
        self.parts.publisher.publish(hints)

    def _now(self, step: LoadedStep, loaded_at: float) -> int:
        return self.parts.database.clock.later(step.now, loaded_at)

    # --- deciding ---------------------------------------------------------------------------------

    def _effect(self, step: LoadedStep) -> Effect:
        tool = self.parts.host.registry.get(step.tool_name)
        return Effect.READ if step.is_turn else (tool.effect if tool else Effect.ONCE)

    def _give_up(self, step: LoadedStep, loaded_at: float) -> bool:
        """Handle a step whose holder was lost and which must not simply run again."""
        event = journal.effect_of_crash(self._effect(step), step.crashes, self.parts.settings.max_crashes)
        if event is StepEvent.LOSE:
            self._lose(step, loaded_at)
        elif event is StepEvent.QUARANTINE:
            quarantine_step(self.parts, step)
        else:
            return False
        return True

    def _lose(self, step: LoadedStep, loaded_at: float) -> None:
        """End a ``once`` call whose worker was lost: as its tool says, or in doubt."""
        cut_off = Outcome(
            ToolOutput.failed(
                ErrorCode.TOOL_EXECUTION_FAILED,
                "the worker that ran it was lost",
                {"reason": "in_doubt", "cause": "worker_lost"},
            ),
            CallResult.IN_DOUBT,
        )
        outcome = reconciled(self.parts, step, cut_off)
        recording = takeover(self.parts, step, self._now(step, loaded_at))
        if outcome.result is CallResult.IN_DOUBT:
            put_in_doubt(self.parts, recording, outcome)
            return
        add_finish(recording, outcome, [])
        record_call(recording, outcome)
        if journal.apply(self.parts.database, recording.change, Transition.RECORD):
            self._publish(step, recording.receipts, recording.hints())

    def _attempt(
        self,
        step: LoadedStep,
        queues: tuple[str, ...],
        loaded_at: float,
        opened: Predecessors | None,
        carried: Container[Carrier],
    ) -> None:
        ctx = context_of(step)
        prepared = None
        messages: tuple[dict[str, Any], ...] = ()
        if step.is_turn:
            assembled = assemble(self.parts.database, step, opened)
            step, messages = assembled.step, assembled.rows
            prepared = self._prepare(step, ctx, assembled.transcript)
        call = call_of(step, ctx, prepared)
        verdict = self.parts.host.decide(call)
        chain = new_chain(step, ctx, self.parts.host.workspace.hash)
        attempt = _Attempt(
            step,
            call,
            verdict,
            chain,
            loaded_at,
            self.parts.database.clock,
            prepared,
            opened,
            messages,
            carried,
        )
        if opened is not None and not attempt.runs:
            # What does not start is recorded from `ready`, where an advance puts it.
            self.parts.publisher.publish([AdvanceHint(step.session_id)])
            return
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
        elif not attempt.runs:
            self._refuse(attempt, receipts)
        elif self._start(attempt, receipts, queues):
            self._act_and_record(attempt)

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
        change.insert(MessageRow, attempt.messages, once=True)
        if attempt.opened is not None and attempt.opened.alone:
            journal.mark_followed(change, step)
        if step.node_status != NodeStatus.RUNNING:
            self._enter_node(change, attempt)
        journal.add_evidence(change, step.session_id, receipts, [attempt.verdict.input])
        attempt.claimed_at = time.monotonic()
        if not journal.apply(database, change, Transition.START):
            return False
        self.parts.live.announce(step.session_id, step.node_id, receipts)
        return True

    def _enter_node(self, change: Change, attempt: _Attempt) -> None:
        """Note that a node runs: this is its first step, or the first since it waited."""
        step = attempt.step
        within = json.loads(step.definition).get("deadline")
        change.update(
            "UPDATE node SET status = 'running', reason = NULL, "
            "deadline_at = COALESCE(deadline_at, CAST(:deadline AS BIGINT)) WHERE uid = :uid "
            "AND status IN ('pending', 'ready', 'scheduled')",
            uid=step.node_uid,
            deadline=None if within is None else attempt.now + within,
        )
        if not step.is_turn or step.turn_index > 0 or step.fence > 0:
            return
        kinds = ["wakeup"] if step.wake_at is not None else []
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
                outcome = reconciled(self.parts, step, outcome)
        if outcome.result is CallResult.IN_DOUBT:
            put_in_doubt(self.parts, self._recording(attempt, []), outcome)
        else:
            self._commit(attempt, [], outcome)

    def _deadline(self, attempt: _Attempt) -> float:
        """Seconds that the call may take: its own limit, at most what is left to its node."""
        if attempt.prepared and attempt.prepared.profile:
            limit = attempt.prepared.profile.profile.timeouts.total
        else:
            tool = self.parts.host.registry.get(attempt.step.tool_name)
            limit = tool.time_limit if tool else 1.0
        deadline = attempt.step.deadline_at
        return limit if deadline is None else min(limit, max((deadline - attempt.now) / 1000, 0.1))

    def _act(self, attempt: _Attempt, deadline_s: float) -> Outcome:
        step = attempt.step
        progress = live_progress(self.parts, step.session_id, step.node_id, attempt.chain)
        if attempt.prepared is None:
            outcome = call_tool(
                self.parts,
                attempt.call,
                attempt.verdict,
                idempotency_key=step.id,
                deadline_s=deadline_s,
                on_progress=progress,
            )
            return replace(outcome, retry_in_ms=self._retry_call(attempt, outcome))
        return make_turn(
            self.parts,
            attempt.prepared,
            on_snapshot=progress,
            deadline_s=deadline_s,
            retry_in=lambda error: self._retry_turn(attempt, error),
        )

    def _retry_call(self, attempt: _Attempt, outcome: Outcome) -> int | None:
        tool = self.parts.host.registry.get(attempt.step.tool_name)
        error = outcome.output.error
        if tool is None or tool.retry is None or error is None or outcome.result is not CallResult.FAILURE:
            return None
        failed = error.code == ErrorCode.TOOL_EXECUTION_FAILED
        return attempt.next_delay(tool.retry, error.code, retryable=failed)

    def _retry_turn(self, attempt: _Attempt, error: ProviderError) -> int | None:
        given = json.loads(attempt.step.definition).get("retry")
        policy = RetryPolicy() if given is None else RetryPolicy.model_validate(given)
        return attempt.next_delay(
            policy, str(error.code), retryable=error.retryable, asked_s=error.retry_after_s
        )

    # --- recording --------------------------------------------------------------------------------

    def _recording(self, attempt: _Attempt, receipts: list[Receipt]) -> Recording:
        return Recording(
            attempt.step,
            copy(attempt.chain),
            self.parts.database.now_sql,
            attempt.now,
            held=not receipts,
            messages=attempt.messages if receipts else (),
            receipts=list(receipts),
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
        self._commit(attempt, receipts, outcome)

    def _commit(self, attempt: _Attempt, receipts: list[Receipt], outcome: Outcome) -> None:
        recording = self._recorded(attempt, receipts, outcome)
        if recording.ends_node and self._was_signalled(attempt, recording):
            recording = self._recorded(attempt, receipts, outcome, signalled=True)
        if not recording.kept:
            testify(self.parts, recording)
            return
        self._publish(attempt.step, recording.receipts, recording.hints(attempt.carried))

    def _recorded(
        self, attempt: _Attempt, receipts: list[Receipt], outcome: Outcome, *, signalled: bool = False
    ) -> Recording:
        recording = self._recording(attempt, receipts)
        add_finish(recording, outcome, list(attempt.verdict.decisions))
        if not attempt.step.is_turn:
            record_call(recording, outcome)
        elif outcome.output.success:
            record_turn(recording, outcome, self.parts.host.queue_of, signalled=signalled)
        else:
            record_turn_failure(recording, outcome)
        recording.kept = journal.apply(self.parts.database, recording.change, Transition.RECORD)
        return recording

    def _was_signalled(self, attempt: _Attempt, recording: Recording) -> bool:
        """Whether a record was refused because its node was handed messages that no turn took in."""
        if recording.kept:
            return False
        step = load_step(self.parts.database, attempt.step.id, self.parts.host.workspace.hash)
        return step is not None and step.fence == attempt.chain.fence and step.inbox > attempt.step.taken

    def _publish(self, step: LoadedStep, receipts: list[Receipt], hints: list[Hint]) -> None:
        self.parts.database.crash.reach(BEFORE_PUBLISH)
        self.parts.publisher.publish(hints)  # first, since the next step waits for it
        self.parts.live.announce(step.session_id, step.node_id, receipts)

    def _release(self, attempt: _Attempt) -> None:
        """Give back a claim whose lease ran down before the call was made; nothing happened."""
        recording = self._recording(attempt, [])
        recording.receipts.append(
            recording.chain.add("tool_call_finished", {"result": "released", "at": attempt.now})
        )
        end = StepEnd(StepEvent.RELEASE, StepStatus.READY, recording.chain.head, reason="released")
        journal.guard_record(
            recording.change, attempt.step, attempt.chain.fence, end, self.parts.database.now_sql, held=True
        )
        journal.add_evidence(recording.change, attempt.step.session_id, recording.receipts)
        journal.apply(self.parts.database, recording.change, Transition.RELEASE)
