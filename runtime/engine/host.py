"""Host-driven calls: the application makes a governed call in its own process.

They are steps like any other, with ``driver=host``, in one host node per (session, run, task). Nobody
publishes them, they need SQL only, and they count neither for a session's end nor for its status.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain
from runtime.core.lifecycle import StepEvent
from runtime.core.model import (
    TURN_TOOL,
    Driver,
    ExecutionContext,
    NodeStatus,
    StepKind,
    StepStatus,
    ToolOutput,
)
from runtime.core.turn import claimed_count
from runtime.engine.acting import call_tool, live_progress
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.park import park_step
from runtime.engine.parts import Parts, worker_name
from runtime.engine.record import Recording, add_finish
from runtime.engine.sessions import check_session_id, context_json
from runtime.engine.tampering import note_tampering
from runtime.engine.turns import PreparedTurn, make_turn, prepare_host_turn
from runtime.errors import ErrorCode, InvalidInput, SessionConflict, SpecTampered
from runtime.kernel.verdict import Call, Grant, Verdict, VerdictKind
from runtime.store import journal
from runtime.store.ids import new_id
from runtime.store.journal import LoadedStep
from runtime.store.rows import step_row
from runtime.store.tables import NodeRow, SessionRow, StepRow
from runtime.store.write import Change

_FIRST_FENCE = 1

_LOAD = """
SELECT {now} AS now, n.uid AS node_uid, n.turns, n.tool_calls,
       e.id AS session_id, e.principal, e.cancelled_at,
       (SELECT s.head FROM step s WHERE s.node_uid = :node
         ORDER BY s.turn_index DESC, s.call_index DESC, s.id DESC LIMIT 1) AS head,
       a.status, a.digest, a.expires_at, a.consumed_by
  FROM (SELECT 1 AS one) o
  LEFT JOIN session e ON e.id = :session
  LEFT JOIN node n ON n.uid = :node
  LEFT JOIN approval a ON a.id = :approval AND a.session_id = :session
"""


@dataclass(slots=True)
class _HostCall:
    """One host-driven call in progress."""

    name: str
    ctx: ExecutionContext
    step_id: str
    node_uid: str
    node_id: str
    loaded: Any
    turn_index: int
    tool_calls: int
    loaded_at: float

    @property
    def now(self) -> int:
        """The database's clock as loaded plus the time elapsed since."""
        return int(self.loaded.now) + round((time.monotonic() - self.loaded_at) * 1000)


def execute(parts: Parts, name: str, value: Any, ctx: ExecutionContext) -> ToolOutput:
    """Make one governed call in this process.

    Returns:
        The output; denials, parked approvals and failures are outputs too.

    Raises:
        InvalidInput: On a malformed context; nothing is saved.
        SessionConflict: If the session belongs to another principal or was cancelled.
        StoreUnavailable: If evidence cannot be written; the call did not run.
    """
    check_session_id(ctx.session_id)
    for field in ("run_id", "task_id"):
        check_id(field, getattr(ctx, field))
    try:
        parts.host.workspace.ensure_unchanged()
    except SpecTampered as error:
        note_tampering(parts, error, session_id=ctx.session_id)
        return ToolOutput.failed(ErrorCode.SPEC_TAMPERED, str(error), error.details)
    call = _load(parts, name, ctx)
    prepared = (
        prepare_host_turn(parts, value, ctx, (call.turn_index, call.tool_calls))
        if name == TURN_TOOL
        else None
    )
    decidable = _decidable(call, value, prepared)
    verdict = parts.host.decide(decidable)
    since = time.monotonic()
    chain = _start(parts, call, verdict)
    step = _loaded_step(call, verdict, chain)
    recording = Recording(step, chain, parts.database.now_sql, call.now, held=True)
    if verdict.kind is VerdictKind.PARK:
        park_step(parts, recording, verdict, call.now)
        assert verdict.output is not None
        return verdict.output
    outcome = _refusal(verdict, prepared)
    if outcome is None:
        outcome = _act(parts, decidable, verdict, prepared, chain, since)
    return _record(parts, recording, verdict, outcome, call)


def check_id(field: str, value: str) -> None:
    """Refuse names that could not be stored or shown."""
    if not value or len(value) > 200 or not value.isprintable():
        raise InvalidInput(f"{field} {value[:40]!r} cannot be used; give 1-200 printable characters")


def _load(parts: Parts, name: str, ctx: ExecutionContext) -> _HostCall:
    node_id = f"host:{ctx.run_id}:{ctx.task_id}"
    node_uid = "hst_" + hashlib.sha256(canonical_json([ctx.session_id, node_id]).encode()).hexdigest()[:32]
    with parts.database.reading() as connection:
        loaded = connection.execute(
            text(_LOAD.format(now=parts.database.now_sql)),
            {
                "node": node_uid,
                "session": ctx.session_id,
                "approval": ctx.metadata.get("approval_request_id"),
            },
        ).one()
    if loaded.session_id is not None and loaded.principal != ctx.principal:
        raise SessionConflict(f"session {ctx.session_id!r} belongs to another principal; use another id")
    if loaded.cancelled_at is not None:
        raise SessionConflict(f"session {ctx.session_id!r} was cancelled; use another id")
    return _HostCall(
        name=name,
        ctx=ctx,
        step_id=new_id("hst"),
        node_uid=node_uid,
        node_id=node_id,
        loaded=loaded,
        turn_index=max(claimed_count(ctx.metadata, "agent_turn_index") or 0, loaded.turns or 0),
        tool_calls=_calls_before(name, ctx, loaded.tool_calls or 0),
        loaded_at=time.monotonic(),
    )


def _calls_before(name: str, ctx: ExecutionContext, counted: int) -> int:
    """Tool calls before this one: the journal's count, which a claim can only raise.

    A call's own claim, as the documents write it, counts the call itself.
    """
    claimed = claimed_count(ctx.metadata, "agent_tool_call_count") or 0
    return max(claimed if name == TURN_TOOL else claimed - 1, counted)


def _decidable(call: _HostCall, value: Any, prepared: PreparedTurn | None) -> Call:
    ctx, row = call.ctx, call.loaded
    asked = ctx.metadata.get("approval_request_id")
    grant = None
    if isinstance(asked, str):
        grant = Grant(
            request_id=asked,
            status=row.status or "unknown",
            digest=row.digest or "",
            expires_at=row.expires_at or 0,
            consumed_by=row.consumed_by,
            binding=False,
        )
    intent = ctx.metadata.get("agent_intent")
    return Call(
        tool_name=call.name,
        input=value,
        ctx=ctx,
        session_id=ctx.session_id,
        node_id=call.node_id,
        step_id=call.step_id,
        call_id=_call_id(ctx),
        intent=intent if isinstance(intent, str) else None,
        turn_index=call.turn_index,
        tool_calls=call.tool_calls,
        now=int(row.now),
        grant=grant,
        network=prepared.network if prepared else (),
    )


def _call_id(ctx: ExecutionContext) -> str:
    given = ctx.metadata.get("tool_call_id")
    return given if isinstance(given, str) and given else "host"


# --- starting -------------------------------------------------------------------------------------


def _start(parts: Parts, call: _HostCall, verdict: Verdict) -> Chain:
    """Commit the session, the host node, the step and its started receipt, before anything runs."""
    ctx = call.ctx
    chain = Chain(
        call.step_id,
        _FIRST_FENCE,
        [call.loaded.head] if call.loaded.head else [],
        common={
            "session_id": ctx.session_id,
            "node_id": call.node_id,
            "run_id": ctx.run_id,
            "task_id": ctx.task_id,
            "principal": ctx.principal,
            "tool_name": call.name,
            "call_id": _call_id(ctx),
            "agent_intent": ctx.metadata.get("agent_intent"),
            "turn_index": call.turn_index,
            "execution_mode": "in-process",
            "workspace_hash": parts.host.workspace.hash,
            "worker": worker_name(),
        },
    )
    started = chain.add("tool_call_started", {**verdict.receipt_fields(), "at": call.now})
    change = Change()
    if verdict.kind is VerdictKind.RUN and verdict.request_id is not None:
        change.guard(
            "UPDATE approval SET consumed_by = :step WHERE id = :id AND status = 'approved' "
            f"AND consumed_by IS NULL AND expires_at > {parts.database.now_sql}",
            step=call.step_id,
            id=verdict.request_id,
        )
    if call.loaded.session_id is None:
        change.insert(SessionRow, [_session_row(call)], once=True)
    if call.loaded.node_uid is None:
        change.insert(NodeRow, [_node_row(call)], once=True)
    else:
        counter = "turns" if call.name == TURN_TOOL else "tool_calls"
        change.update(f"UPDATE node SET {counter} = {counter} + 1 WHERE uid = :uid", uid=call.node_uid)
    change.insert(StepRow, [_step_row(parts, call, chain, verdict)])
    journal.add_evidence(change, ctx.session_id, [started], [verdict.input])
    parts.crash.reach("start.before_commit")
    if not journal.apply(parts.database, change):
        raise SessionConflict(
            f"approval {verdict.request_id} was used by another call just now; ask for a new one",
            code="already_consumed",
        )
    parts.crash.reach("start.after_commit")
    parts.live.announce(ctx.session_id, call.node_id, [started])
    return chain


def _session_row(call: _HostCall) -> dict[str, Any]:
    ctx = call.ctx
    return {
        "id": ctx.session_id,
        "kind": "host",
        "run_id": ctx.run_id,
        "task_id": ctx.task_id,
        "principal": ctx.principal,
        "context": canonical_json(context_json(ctx)),
        "definition_digest": "",
        "created_at": int(call.loaded.now),
        "continuations": 0,
        "control_n": 0,
    }


def _node_row(call: _HostCall) -> dict[str, Any]:
    return {
        "uid": call.node_uid,
        "session_id": call.ctx.session_id,
        "node_id": call.node_id,
        "position": 0,
        "mode": "host",
        "definition": "{}",
        "status": NodeStatus.RUNNING,
        "dependencies": 0,
        "max_turns": 0,
        "turn_budget": 0,
        "turns": int(call.name == TURN_TOOL),
        "tool_calls": int(call.name != TURN_TOOL),
        "inbox": 0,
        "priority": 0,
    }


def _step_row(parts: Parts, call: _HostCall, chain: Chain, verdict: Verdict) -> dict[str, Any]:
    now = int(call.loaded.now)
    return step_row(
        id=call.step_id,
        session_id=call.ctx.session_id,
        node_uid=call.node_uid,
        node_id=call.node_id,
        kind=_kind(call),
        turn_index=call.turn_index,
        call_index=0 if call.name == TURN_TOOL else call.tool_calls,
        tool_name=call.name,
        queue="host",
        driver=Driver.HOST,
        status=StepStatus.RUNNING,
        due_at=now,
        lease_until=now + parts.lease_ms,
        fence=_FIRST_FENCE,
        attempts=1,
        head=chain.head,
        input=verdict.input.text if verdict.input.inline else None,
        input_hash=verdict.input.hash,
        call_id=_call_id(call.ctx),
        approval_id=verdict.request_id if verdict.kind is VerdictKind.RUN else None,
        worker=worker_name(),
        started_at=now,
    )


# --- acting ---------------------------------------------------------------------------------------


def _refusal(verdict: Verdict, prepared: PreparedTurn | None) -> Outcome | None:
    if verdict.kind is VerdictKind.REFUSE:
        assert verdict.output is not None
        return Outcome(verdict.output, CallResult.DENIED if verdict.denied else CallResult.FAILURE)
    if prepared is not None and prepared.failure is not None:
        return Outcome(ToolOutput(success=False, error=prepared.failure), CallResult.FAILURE)
    return None


def _act(
    parts: Parts, call: Call, verdict: Verdict, prepared: PreparedTurn | None, chain: Chain, since: float
) -> Outcome:
    progress = live_progress(parts, call.session_id, call.node_id, chain)
    with parts.leases.holding(call.step_id, chain.fence, None, since=since):
        if prepared is not None:
            return make_turn(parts, prepared, attempt=1, on_snapshot=progress)
        return call_tool(
            parts, call, verdict, idempotency_key=_idempotency_key(call, verdict), on_progress=progress
        )


def _idempotency_key(call: Call, verdict: Verdict) -> str:
    """The same for every run of one approved call; else the step's own."""
    return verdict.request_id or call.step_id


# --- recording ------------------------------------------------------------------------------------


def _loaded_step(call: _HostCall, verdict: Verdict, chain: Chain) -> LoadedStep:
    """The step that was just inserted, in the form that recording takes."""
    ctx = call.ctx
    return LoadedStep(
        id=call.step_id,
        session_id=ctx.session_id,
        node_uid=call.node_uid,
        node_id=call.node_id,
        kind=_kind(call),
        tool_name=call.name,
        driver=Driver.HOST,
        status=StepStatus.RUNNING,
        fence=chain.fence,
        run_id=ctx.run_id,
        task_id=ctx.task_id,
        principal=ctx.principal,
        now=int(call.loaded.now),
        head=chain.head,
        input=verdict.input.text,
        call_id=_call_id(ctx),
    )


def _kind(call: _HostCall) -> StepKind:
    return StepKind.TURN if call.name == TURN_TOOL else StepKind.TOOL_CALL


def _record(
    parts: Parts, recording: Recording, verdict: Verdict, outcome: Outcome, call: _HostCall
) -> ToolOutput:
    add_finish(recording, outcome, list(verdict.decisions))
    event, status = {
        CallResult.SUCCESS: (StepEvent.SUCCEED, StepStatus.SUCCEEDED),
        CallResult.DENIED: (StepEvent.DENY, StepStatus.DENIED),
        CallResult.IN_DOUBT: (StepEvent.LOSE, StepStatus.IN_DOUBT),
    }.get(outcome.result, (StepEvent.FAIL, StepStatus.FAILED))
    data = outcome.output.data
    recording.end(event, status, outcome, output=canonical_json(data) if outcome.output.success else None)
    parts.crash.reach("record.before_commit")
    kept = journal.apply(parts.database, recording.change)
    parts.crash.reach("record.after_commit")
    if kept:
        parts.live.announce(call.ctx.session_id, call.node_id, recording.receipts)
    metadata = {
        **outcome.output.metadata,
        "step_id": call.step_id,
        "receipts": [receipt.hash for receipt in recording.receipts],
        "recorded": kept,
    }
    return outcome.output.model_copy(update={"metadata": metadata})
