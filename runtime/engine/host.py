"""Host-driven calls: the application makes a governed call in its own process.

They are steps like any other, with ``driver=host``, in one host node per (session, run, task). Nobody
publishes them, they need SQL only, and they count neither for a session's end nor for its status.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain
from runtime.core.lifecycle import StepEvent
from runtime.core.model import TURN_TOOL, ExecutionContext, StepStatus, ToolOutput
from runtime.core.text import check_name
from runtime.engine.acting import call_tool, live_progress
from runtime.engine.host_start import (
    HostCall,
    decidable,
    ensure_session,
    load_call,
    start_call,
    started_step,
)
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.park import park_step
from runtime.engine.parts import Parts
from runtime.engine.recording import Recording, add_finish
from runtime.engine.sessions import check_context
from runtime.engine.tampering import note_tampering
from runtime.engine.turns import PreparedTurn, make_turn, prepare_host_turn
from runtime.errors import ErrorCode, SessionConflict, SpecTampered, StoreUnavailable
from runtime.kernel.verdict import Call, Verdict, VerdictKind
from runtime.store import journal
from runtime.store.crashpoints import Transition

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""How much longer than its time limit a call may keep its lease: what starting and stopping take."""

STARTS = 100
"""How often a call is decided anew because others of its run and task started meanwhile."""


@dataclass(frozen=True, slots=True)
class _Started:
    """A call whose start is committed, with what it was decided on."""

    call: HostCall
    asked: Call
    prepared: PreparedTurn | None
    verdict: Verdict
    chain: Chain
    since: float

    def recording(self, parts: Parts) -> Recording:
        """The record of this call, at the present moment."""
        step = started_step(self.call, self.verdict, self.chain)
        return Recording(step, self.chain, parts.database.now_sql, self.call.now, held=True)


def execute(
    parts: Parts,
    name: str,
    value: Any,
    ctx: ExecutionContext,
    *,
    catalog: Collection[str] | None = None,
) -> ToolOutput:
    """Make one governed call in this process.

    Args:
        parts: The parts of this process.
        name: The tool.
        value: Its input.
        ctx: On whose behalf, and what narrows it.
        catalog: Names that the turn which asks for the call was given; ``None`` narrows nothing.

    Returns:
        The output; denials, parked approvals and failures are outputs too. Its metadata says under
        ``recorded`` whether the end of the call is in the database, and if not, why under ``warning``.

    Raises:
        InvalidInput: On a name that cannot be used; nothing is saved.
        SessionConflict: If the session belongs to another principal, was cancelled, is paused or has ended,
            or too many calls of the same run and task were made at once; the call did not run.
        StoreUnavailable: If evidence cannot be written; the call did not run.
    """
    _check(name, ctx)
    try:
        parts.host.workspace.ensure_unchanged()
    except SpecTampered as error:
        ensure_session(parts, load_call(parts, name, ctx))
        note_tampering(parts, error, session_id=ctx.session_id)
        return ToolOutput.failed(ErrorCode.SPEC_TAMPERED, str(error), error.details)
    started = _start(parts, name, value, ctx, catalog)
    verdict = started.verdict
    if verdict.kind is VerdictKind.PARK:
        assert verdict.output is not None
        recording = started.recording(parts)
        park_step(parts, recording, verdict, recording.now)
        return verdict.output
    outcome = _refusal(verdict, started.prepared) or _act(parts, started)
    return _record(parts, started, outcome)


def _check(name: str, ctx: ExecutionContext) -> None:
    """Refuse names that could not be stored or shown."""
    check_name("tool name", name)
    check_context(ctx)
    for key in ("approval_request_id", "tool_call_id"):
        value = ctx.metadata.get(key)
        if isinstance(value, str) and value:
            check_name(f"metadata[{key!r}]", value)


def _start(
    parts: Parts, name: str, value: Any, ctx: ExecutionContext, catalog: Collection[str] | None
) -> _Started:
    """Decide the call and commit its start; decide anew while others change what it rests on."""
    for _ in range(STARTS):
        call = load_call(parts, name, ctx)
        counters = (call.turn_index, call.tool_calls)
        prepared = prepare_host_turn(parts, value, ctx, counters) if name == TURN_TOOL else None
        asked = replace(decidable(call, value, prepared), catalog=catalog)
        verdict = parts.host.decide(asked)
        since = time.monotonic()
        chain = start_call(parts, call, verdict)
        if chain is not None:
            return _Started(call, asked, prepared, verdict, chain, since)
    raise SessionConflict(
        f"{STARTS} other calls of run {ctx.run_id!r}, task {ctx.task_id!r} started while {name!r} was being "
        "decided; make fewer at once, or give them task ids of their own",
        code="too_many_at_once",
    )


# --- acting ---------------------------------------------------------------------------------------


def _refusal(verdict: Verdict, prepared: PreparedTurn | None) -> Outcome | None:
    if verdict.kind is VerdictKind.REFUSE:
        assert verdict.output is not None
        return Outcome(verdict.output, CallResult.DENIED if verdict.denied else CallResult.FAILURE)
    if prepared is not None and prepared.failure is not None:
        return Outcome(ToolOutput(success=False, error=prepared.failure), CallResult.FAILURE)
    return None


def _act(parts: Parts, started: _Started) -> Outcome:
    call, chain = started.asked, started.chain
    progress = live_progress(parts, call.session_id, call.node_id, chain)
    limit_s = _time_limit(parts, started) + GRACE_S
    with parts.leases.holding(call.step_id, chain.fence, limit_s, since=started.since):
        if started.prepared is not None:
            return make_turn(parts, started.prepared, on_snapshot=progress)
        # The same key for every run of one approved call; else the step's own.
        key = started.verdict.request_id or call.step_id
        return call_tool(parts, call, started.verdict, idempotency_key=key, on_progress=progress)


def _time_limit(parts: Parts, started: _Started) -> float:
    """Seconds that the call may take; one that does not end in time loses its lease, and is swept."""
    if started.prepared is not None and started.prepared.profile is not None:
        return started.prepared.profile.profile.timeouts.total
    tool = parts.host.registry.get(started.call.name)
    return tool.time_limit if tool is not None else 0.0


# --- recording ------------------------------------------------------------------------------------


def _record(parts: Parts, started: _Started, outcome: Outcome) -> ToolOutput:
    """Record the end of a call; whatever comes of that, its caller learns what it returned."""
    recording = started.recording(parts)
    add_finish(recording, outcome, list(started.verdict.decisions))
    event, status = {
        CallResult.SUCCESS: (StepEvent.SUCCEED, StepStatus.SUCCEEDED),
        CallResult.DENIED: (StepEvent.DENY, StepStatus.DENIED),
        CallResult.IN_DOUBT: (StepEvent.LOSE, StepStatus.IN_DOUBT),
    }.get(outcome.result, (StepEvent.FAIL, StepStatus.FAILED))
    data = outcome.output.data
    recording.end(event, status, outcome, output=canonical_json(data) if outcome.output.success else None)
    metadata: dict[str, Any] = {**outcome.output.metadata, "step_id": started.call.step_id}
    problem = _commit(parts, recording)
    if problem is None:
        parts.live.announce(recording.step.session_id, recording.step.node_id, recording.receipts)
        metadata |= {"recorded": True, "receipts": [receipt.hash for receipt in recording.receipts]}
    else:
        warning = (
            f"{started.call.name} ended with {outcome.result}, which this output says, but the end of step "
            f"{started.call.step_id} could not be recorded: {problem}. Its start is in evidence; do not take "
            "it for a call that did not run"
        )
        logger.warning(warning)
        metadata |= {"recorded": False, "receipts": [], "warning": warning}
    return outcome.output.model_copy(update={"metadata": metadata})


def _commit(parts: Parts, recording: Recording) -> str | None:
    """Commit a record; return why it could not be, if so."""
    try:
        kept = journal.apply(parts.database, recording.change, Transition.HOST_RECORD)
    except StoreUnavailable as error:
        return f"{error}; the sweep will finish it as crashed, or in doubt if its tool's effect is 'once'"
    except SQLAlchemyError as error:  # its text would quote what was to be written
        return f"the database answered with {type(error).__name__}; the sweep will finish it"
    return None if kept else "its lease had run out, and the sweep finished it as lost"
