"""The start of a host-driven call: what was read, and the transaction that rests on it.

Calls of one run and task share a host node, whose counters limits and policy are decided on. Several
may be decided at the same time, so a start counts up only from what its decision saw, in a session that is
still the caller's and open: neither cancelled nor paused nor over. A start that finds something else commits
nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain
from runtime.core.graph import HOST_PREFIX
from runtime.core.model import TURN_TOOL, Driver, ExecutionContext, NodeStatus, StepKind, StepStatus
from runtime.core.turn import claimed_count
from runtime.engine.parts import Parts, worker_name
from runtime.engine.sessions import context_json
from runtime.engine.turns import PreparedTurn
from runtime.errors import SessionConflict
from runtime.kernel.verdict import Call, Grant, Verdict, VerdictKind
from runtime.store import journal
from runtime.store.clock import Clock
from runtime.store.crashpoints import Transition
from runtime.store.ids import new_id, node_uid
from runtime.store.rows import node_row, step_row
from runtime.store.steps import LoadedStep
from runtime.store.tables import NodeRow, SessionRow, StepRow
from runtime.store.write import Change

_FIRST_FENCE = 1

_LOAD = """
SELECT {now} AS now, n.uid AS node_uid, n.turns, n.tool_calls,
       e.id AS session_id, e.principal, e.cancelled_at, e.paused_at, e.ended_status,
       (SELECT s.head FROM step s WHERE s.node_uid = :node
         ORDER BY s.turn_index DESC, s.call_index DESC, s.id DESC LIMIT 1) AS head,
       a.status, a.digest, a.expires_at, a.consumed_by
  FROM (SELECT 1 AS one) o
  LEFT JOIN session e ON e.id = :session
  LEFT JOIN node n ON n.uid = :node
  LEFT JOIN approval a ON a.id = :approval AND a.session_id = :session
"""


@dataclass(frozen=True, slots=True)
class HostCall:
    """One host-driven call as it was loaded.

    Attributes:
        name: The tool.
        ctx: On whose behalf.
        step_id: The step that a start inserts.
        node_uid: The host node.
        node_id: Its id within the session.
        loaded: What was read: the clock, the session, the node's counters, its last receipt, the approval.
        turn_index: Turns before this one, or before the turn that asked for this tool call: the journal's
            count, or the caller's if that is higher.
        tool_calls: Tool calls before this call, likewise.
        loaded_at: Reading of `time.monotonic` at the load.
        clock: The database's clock.
    """

    name: str
    ctx: ExecutionContext
    step_id: str
    node_uid: str
    node_id: str
    loaded: Any
    turn_index: int
    tool_calls: int
    loaded_at: float
    clock: Clock

    @property
    def now(self) -> int:
        """The database's clock as loaded plus the time elapsed since."""
        return self.clock.later(int(self.loaded.now), self.loaded_at)

    @property
    def is_turn(self) -> bool:
        """Whether this is a model call."""
        return self.name == TURN_TOOL

    @property
    def call_id(self) -> str:
        """Id under which the host knows the call."""
        given = self.ctx.metadata.get("tool_call_id")
        return given if isinstance(given, str) and given else "host"


def load_call(parts: Parts, name: str, ctx: ExecutionContext) -> HostCall:
    """Read all that a host-driven call is decided on, in one statement.

    Raises:
        SessionConflict: If the session belongs to another principal, was cancelled, is paused or has ended.
        StoreUnavailable: If the database cannot be reached.
    """
    node_id = f"{HOST_PREFIX}{ctx.run_id}:{ctx.task_id}"
    uid = node_uid(ctx.session_id, node_id)
    with parts.database.reading() as connection:
        loaded = connection.execute(
            text(_LOAD.format(now=parts.database.now_sql)),
            {
                "node": uid,
                "session": ctx.session_id,
                "approval": _asked(ctx),
            },
        ).one()
    _refuse(ctx, loaded)
    return HostCall(
        name=name,
        ctx=ctx,
        step_id=new_id("hst"),
        node_uid=uid,
        node_id=node_id,
        loaded=loaded,
        turn_index=_turn_index(name, ctx, loaded.turns or 0),
        tool_calls=_calls_before(name, ctx, loaded.tool_calls or 0),
        loaded_at=time.monotonic(),
        clock=parts.database.clock,
    )


def _refuse(ctx: ExecutionContext, loaded: Any) -> None:
    """Refuse calls in a session in which nothing may start."""
    named = f"session {ctx.session_id!r}"
    if loaded.session_id is not None and loaded.principal != ctx.principal:
        raise SessionConflict(f"{named} belongs to another principal; use another id")
    if loaded.cancelled_at is not None:
        raise SessionConflict(f"{named} was cancelled; use another id")
    if loaded.ended_status is not None:
        raise SessionConflict(
            f"{named} has ended as {loaded.ended_status}; use another id, or resume it first"
        )
    if loaded.paused_at is not None:
        raise SessionConflict(f"{named} is paused; unpause it, and make the call then")


def _asked(ctx: ExecutionContext) -> str | None:
    """The approval request under which the caller wants the call to run."""
    asked = ctx.metadata.get("approval_request_id")
    return asked if isinstance(asked, str) else None


def _turn_index(name: str, ctx: ExecutionContext, counted: int) -> int:
    """Turns before this one, or before the one that asked for this tool call; a claim can only raise it."""
    claimed = claimed_count(ctx.metadata, "agent_turn_index") or 0
    return max(claimed, counted if name == TURN_TOOL else counted - 1)


def _calls_before(name: str, ctx: ExecutionContext, counted: int) -> int:
    """Tool calls before this one: the journal's count, which a claim can only raise.

    A call's own claim, as the documents write it, counts the call itself.
    """
    claimed = claimed_count(ctx.metadata, "agent_tool_call_count") or 0
    return max(claimed if name == TURN_TOOL else claimed - 1, counted)


def decidable(call: HostCall, value: Any, prepared: PreparedTurn | None) -> Call:
    """What the kernel is asked about a host-driven call.

    Args:
        call: The call as loaded.
        value: Its input.
        prepared: For turns: the model call.
    """
    ctx, row = call.ctx, call.loaded
    asked = _asked(ctx)
    grant = None
    if asked is not None:
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
        call_id=call.call_id,
        intent=intent if isinstance(intent, str) else None,
        turn_index=call.turn_index,
        tool_calls=call.tool_calls,
        now=int(row.now),
        grant=grant,
        network=prepared.network if prepared else (),
    )


# --- starting -------------------------------------------------------------------------------------


def start_call(parts: Parts, call: HostCall, verdict: Verdict) -> Chain | None:
    """Commit the session, the host node, the step and its started receipt, before anything runs.

    Returns:
        The attempt's chain; ``None`` if what the decision rested on has changed, and nothing was written.

    Raises:
        StoreUnavailable: If the start cannot be written.
    """
    chain = _new_chain(parts, call)
    started = chain.add("tool_call_started", {**verdict.receipt_fields(), "at": call.now})
    change = Change()
    _guard(parts, call, verdict, change)
    change.insert(StepRow, [_step_row(parts, call, chain, verdict)])
    journal.add_evidence(change, call.ctx.session_id, [started], [verdict.input])
    if not _commit(parts, _places(call), change):
        return None
    parts.live.announce(call.ctx.session_id, call.node_id, [started])
    return chain


def _new_chain(parts: Parts, call: HostCall) -> Chain:
    ctx = call.ctx
    return Chain(
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
            "call_id": call.call_id,
            "agent_intent": ctx.metadata.get("agent_intent"),
            "turn_index": call.turn_index,
            "execution_mode": "in-process",
            "workspace_hash": parts.host.workspace.hash,
            "worker": worker_name(),
        },
    )


def _guard(parts: Parts, call: HostCall, verdict: Verdict, change: Change) -> None:
    """Count the call and use its grant, if all that it was decided on still holds."""
    counter = "turns" if call.is_turn else "tool_calls"
    principal = call.ctx.principal
    owner = {} if principal is None else {"principal": principal}
    change.guard(
        f"UPDATE node SET {counter} = {counter} + 1 "
        "WHERE uid = :uid AND turns = :turns AND tool_calls = :calls AND EXISTS (SELECT 1 FROM session e "
        "WHERE e.id = :session AND e.cancelled_at IS NULL AND e.paused_at IS NULL AND e.ended_status IS NULL "
        f"AND e.principal {'= :principal' if owner else 'IS NULL'})",
        uid=call.node_uid,
        turns=call.loaded.turns or 0,
        calls=call.loaded.tool_calls or 0,
        session=call.ctx.session_id,
        **owner,
    )
    if verdict.kind is VerdictKind.RUN and verdict.request_id is not None:
        change.guard(
            "UPDATE approval SET consumed_by = :step WHERE id = :id AND status = 'approved' "
            f"AND consumed_by IS NULL AND expires_at > {parts.database.now_sql}",
            step=call.step_id,
            id=verdict.request_id,
        )


def ensure_session(parts: Parts, call: HostCall) -> None:
    """Commit the call's session if it is new, so that a refusal before any start has where to leave evidence.

    Raises:
        StoreUnavailable: If it cannot be written.
    """
    if call.loaded.session_id is None:
        change = Change()
        change.insert(SessionRow, [_session_row(call)], once=True)
        with parts.database.writing(Transition.TAMPER) as connection:
            change.apply(connection)


def _places(call: HostCall) -> Change:
    """The session and the host node, where they were missing; another call may be making them too."""
    change = Change()
    if call.loaded.session_id is None:
        change.insert(SessionRow, [_session_row(call)], once=True)
    if call.loaded.node_uid is None:
        change.insert(NodeRow, [_node_row(call)], once=True)
    return change


class _Lost(Exception):
    """Rolls the transaction back when a guard did not hold."""


def _commit(parts: Parts, places: Change, change: Change) -> bool:
    # Two statements, since the guards must see a node that this very transaction inserts.
    try:
        with parts.database.writing(Transition.HOST_START) as connection:
            places.apply(connection)
            if not change.apply(connection):
                raise _Lost
    except _Lost:
        return False
    return True


def _session_row(call: HostCall) -> dict[str, Any]:
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


def _node_row(call: HostCall) -> dict[str, Any]:
    return node_row(
        uid=call.node_uid,
        session_id=call.ctx.session_id,
        node_id=call.node_id,
        status=NodeStatus.RUNNING,
        mode="host",
    )


def _step_row(parts: Parts, call: HostCall, chain: Chain, verdict: Verdict) -> dict[str, Any]:
    now = int(call.loaded.now)
    return step_row(
        id=call.step_id,
        session_id=call.ctx.session_id,
        node_uid=call.node_uid,
        node_id=call.node_id,
        kind=StepKind.TURN if call.is_turn else StepKind.TOOL_CALL,
        turn_index=call.turn_index,
        call_index=0 if call.is_turn else call.tool_calls,
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
        call_id=call.call_id,
        approval_id=verdict.request_id if verdict.kind is VerdictKind.RUN else None,
        worker=worker_name(),
        started_at=now,
    )


def started_step(call: HostCall, verdict: Verdict, chain: Chain) -> LoadedStep:
    """The step that was just inserted, in the form that recording takes."""
    ctx = call.ctx
    return LoadedStep(
        id=call.step_id,
        session_id=ctx.session_id,
        node_uid=call.node_uid,
        node_id=call.node_id,
        kind=StepKind.TURN if call.is_turn else StepKind.TOOL_CALL,
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
        call_id=call.call_id,
    )
