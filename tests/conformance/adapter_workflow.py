"""Runs the product on records of workflow.jsonl: the real engine over a scripted model and scripted tools.

What is answered is read back from the engine: handles, the journal and its messages, the loop's result. It is
written down in the form of the records; what may differ there in order or form, the comparison leaves out.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from runtime import (
    resume_governed_agent_session,
    resume_governed_agent_workflow,
    run_governed_agent_loop,
    start_governed_agent_session,
    start_governed_agent_workflow,
)
from runtime.core.model import ExecutionContext
from runtime.engine.handle import NodeView, SessionHandle
from runtime.errors import AgentRuntimeError
from runtime.store.sessions import read_status
from tests.harness.scripted import LINEAR, Stage, profile_name, staged

SESSION = "vector"
DEFAULT_MAX_TURNS = 12
APPROVER = "operator@example.com"
HELLO = {"role": "user", "content": "hello"}


def workflow(given: dict[str, Any]) -> dict[str, Any]:
    """Play a record's steps; one answer per step."""
    linear = given["mode"] != "dag"
    nodes = [LINEAR] if linear else [node["id"] for node in given["nodes"]]
    seed = zlib.crc32(json.dumps(given, sort_keys=True).encode())
    with staged(nodes, given["script"], linear=linear, seed=seed) as stage:
        if given["mode"] == "loop":
            return {"steps": [_loop(stage, given, step) for step in given["steps"]]}
        return {"steps": [_step(stage, given, step) for step in given["steps"]]}


def _context() -> ExecutionContext:
    return ExecutionContext(run_id="run-1", task_id="task-1", session_id=SESSION)


def _turn_input(messages: list[dict[str, Any]], number: int = 0) -> dict[str, Any]:
    return {"model_profile": profile_name(number), "messages": messages}


# --- loops ----------------------------------------------------------------------------------------


def _loop(stage: Stage, given: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    done = run_governed_agent_loop(
        runtime=stage.runtime,
        execute_turn_input=_turn_input(given["initial_messages"]),
        ctx=_context(),
        max_turns=step.get("max_turns", DEFAULT_MAX_TURNS),
    )
    result: dict[str, Any] = {
        "kind": done.kind,
        "turn_count": done.turn_count,
        "tool_call_count": done.tool_call_count,
        "messages": [_message(stage, message) for message in _spoken(done.messages)],
        "history": done.history,
    }
    if done.kind == "completed":
        result["final_turn"] = _said(done.final_turn)
    elif done.kind == "approval_required":
        result["pending_request_id"] = stage.script.request_ids[done.pending_request_id or ""]
        result["requested_tool"] = done.requested_tool
        result["last_turn"] = _said(done.final_turn)
    else:
        assert done.error is not None
        result |= {"stage": done.stage, "error": _error(done.error.model_dump())}
    return {"result": result, "calls": _calls(stage)}


# --- sessions and workflows -----------------------------------------------------------------------


def _step(stage: Stage, given: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    stage.put_clock(step["now"])
    try:
        (_start if step["op"] == "start" else _resume)(stage, given, step)
    except AgentRuntimeError as error:
        return {
            "result": {"raises": True, "message": str(error)},
            "state": _state(stage, given["mode"]),
            "calls": _calls(stage),
        }
    stage.run(SESSION)
    handle = stage.runtime.session(SESSION)
    result = _dag_result(stage, handle) if given["mode"] == "dag" else _session_result(stage, handle)
    return {"result": result, "state": _state(stage, given["mode"]), "calls": _calls(stage)}


def _start(stage: Stage, given: Mapping[str, Any], step: Mapping[str, Any]) -> None:
    max_turns = step.get("max_turns_per_invocation", DEFAULT_MAX_TURNS)
    if given["mode"] == "session":
        start_governed_agent_session(
            runtime=stage.runtime,
            execute_turn_input=_turn_input(given["initial_messages"]),
            ctx=_context(),
            max_turns=max_turns,
        )
        return
    nodes = [
        {
            "id": node["id"],
            "execute_turn_input": _turn_input([{**HELLO, "content": node.get("content", "hello")}], number),
            **{name: node[name] for name in ("depends_on", "wake_at") if name in node},
        }
        for number, node in enumerate(given["nodes"])
    ]
    start_governed_agent_workflow(
        runtime=stage.runtime,
        workflow={"session_id": SESSION, "nodes": nodes},
        ctx=_context(),
        max_turns_per_invocation=max_turns,
    )


def _resume(stage: Stage, given: Mapping[str, Any], step: Mapping[str, Any]) -> None:
    for answer in step.get("approve", ()):
        _answer(stage, answer)
    max_turns = step.get("max_turns_per_invocation", DEFAULT_MAX_TURNS)
    if given["mode"] == "session":
        resume_governed_agent_session(
            runtime=stage.runtime,
            session_id=SESSION,
            messages=step.get("messages"),
            max_turns_per_invocation=max_turns,
        )
    else:
        resume_governed_agent_workflow(
            runtime=stage.runtime, session_id=SESSION, max_turns_per_invocation=max_turns
        )


def _answer(stage: Stage, answer: Mapping[str, Any]) -> None:
    ours = {theirs: ours for ours, theirs in stage.script.request_ids.items()}
    stage.runtime.resolve_approval(
        request_id=ours.get(answer["request_id"], answer["request_id"]),
        approved=answer["approved"],
        approved_by=answer.get("approved_by", APPROVER),
        reason=answer.get("reason"),
    )


# --- results --------------------------------------------------------------------------------------


def _dag_result(stage: Stage, handle: SessionHandle) -> dict[str, Any]:
    status, nodes = str(handle.status()), handle.nodes()
    first = next((node for node in nodes if node.status == status), None)
    match status:
        case "completed":
            return {"kind": status, "completed_node_ids": _ids(nodes, "completed")}
        case "scheduled":
            return {
                "kind": status,
                "completed_node_ids": _ids(nodes, "completed"),
                "scheduled_node_ids": _ids(nodes, "scheduled"),
                "next_wake_at": _next_wake(nodes),
            }
        case "waiting_approval" if first is not None:
            return {"kind": "approval_required", "node_id": first.id, **_asked(stage, first)}
        case "suspended" if first is not None:
            return {"kind": status, "node_id": first.id}
        case "error" if first is not None:
            return {"kind": status, "node_id": first.id, "error": _error(first.error)}
        case "error":
            found = read_status(stage.runtime.parts.database, SESSION)
            assert found is not None
            return {
                "kind": status,
                "node_id": "workflow",
                "error": _error(json.loads(found[0].end_error or "")),
            }
        case _:
            return {"kind": status}


def _session_result(stage: Stage, handle: SessionHandle) -> dict[str, Any]:
    status, node = str(handle.status()), handle.nodes()[0]
    turns = _turns(stage)
    result: dict[str, Any] = {
        "kind": "approval_required" if status == "waiting_approval" else status,
        "turn_count": node.turn_count,
        "tool_call_count": node.tool_call_count,
        "messages": [_message(stage, message) for message in _spoken(_messages(stage, node.id))],
        "history": _history(stage),
    }
    if status == "completed":
        result["final_turn"] = _said(node.result)
    elif status == "waiting_approval":
        result |= {**_asked(stage, node), "last_turn": _said(turns[-1])}
    elif status == "error":
        result |= {"stage": "execute_turn", "error": _error(node.error)}
    return result


def _ids(nodes: list[NodeView], status: str) -> list[str]:
    return [node.id for node in nodes if node.status == status]


def _next_wake(nodes: list[NodeView]) -> str:
    return _instant(min(node.wake_at or 0 for node in nodes if node.status == "scheduled"))


def _instant(at: int) -> str:
    moment = datetime.fromtimestamp(at / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _asked(stage: Stage, node: NodeView) -> dict[str, Any]:
    approval = next(
        each for each in stage.runtime.approvals(SESSION) if each.request_id == node.pending_request_id
    )
    return {
        "pending_request_id": stage.script.request_ids[approval.request_id],
        "requested_tool": {"name": approval.tool_name, "input": approval.input},
    }


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in error.items() if value or key != "details"}


def _said(turn: Mapping[str, Any] | None) -> dict[str, Any]:
    assert turn is not None
    said = {name: turn[name] for name in ("status", "intent", "assistant_message")}
    if said["status"] == "tool_request":
        del said["assistant_message"]  # the script has none for such a turn
    return said


# --- what is stored -------------------------------------------------------------------------------


def _state(stage: Stage, mode: str) -> dict[str, Any] | None:
    if read_status(stage.runtime.parts.database, SESSION) is None:
        return None
    handle = stage.runtime.session(SESSION)
    status, nodes = str(handle.status()), handle.nodes()
    state: dict[str, Any] = {"status": status}
    if status == "scheduled":
        state["next_wake_at"] = _next_wake(nodes)
    if mode == "session":
        state |= _counters(stage, nodes[0])
    else:
        state["nodes"] = [
            {
                "node_id": node.id,
                "status": str(node.status),
                **_counters(stage, node),
                "message_roles": [message["role"] for message in _messages(stage, node.id)],
            }
            for node in nodes
        ]
    state["continuations"] = _continuations(stage, handle, mode)
    return state


def _counters(stage: Stage, node: NodeView) -> dict[str, Any]:
    counters = {"turn_count": node.turn_count, "tool_call_count": node.tool_call_count}
    if node.pending_request_id is None:
        return counters
    return {**counters, "pending_request_id": stage.script.request_ids[node.pending_request_id]}


def _continuations(stage: Stage, handle: SessionHandle, mode: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    left_out = 0
    for each in handle.continuations():
        if mode == "session" and each["kind"] == "branch_completed":
            left_out += 1  # the records know branches in graphs alone; the conversation's end is told as well
            continue
        entry = {key: value for key, value in each.items() if key != "at"}
        entry["sequence"] = each.get("sequence", -1) - left_out
        entry["timestamp"] = _instant(stage.instant_of(each["at"]))
        if "request_id" in entry:
            entry["request_id"] = stage.script.request_ids[entry["request_id"]]
        if mode == "session":
            entry.pop("node_id", None)  # the records name no node where there is one only
        if each["kind"] == "error" and each.get("node_id") == "workflow":
            del entry["node_id"]  # nor the workflow as a whole, but in results
        found.append(entry)
    return found


def _rows(stage: Stage, sql: str, **values: Any) -> list[Any]:
    with stage.runtime.parts.database.reading() as connection:
        return list(connection.execute(text(sql), {"session": SESSION, **values}).all())


def _messages(stage: Stage, node_id: str) -> list[dict[str, Any]]:
    rows = _rows(
        stage,
        "SELECT m.content FROM message m JOIN node n ON n.uid = m.node_uid "
        "WHERE n.session_id = :session AND n.node_id = :node ORDER BY m.number",
        node=node_id,
    )
    return [json.loads(row.content) for row in rows]


def _spoken(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages that the records list; what the model said is in their history."""
    return [message for message in messages if message["role"] != "assistant"]


def _message(stage: Stage, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the script's names of approval requests."""
    written = json.dumps(message)
    for ours, theirs in stage.script.request_ids.items():
        written = written.replace(ours, theirs)
    named: dict[str, Any] = json.loads(written)
    return named


def _turns(stage: Stage) -> list[dict[str, Any]]:
    rows = _rows(
        stage,
        "SELECT output FROM step WHERE session_id = :session AND kind = 'turn' AND status = 'succeeded' "
        "ORDER BY turn_index",
    )
    return [json.loads(row.output) for row in rows]


def _history(stage: Stage) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = [
        {"turn_index": index, "status": turn["status"]} for index, turn in enumerate(_turns(stage))
    ]
    calls = _rows(
        stage,
        "SELECT turn_index, call_id, status FROM step WHERE session_id = :session AND kind = 'tool_call'",
    )
    for call in calls:
        succeeded = call.status == "succeeded"
        history[call.turn_index] |= {"tool_call_id": call.call_id, "tool_success": succeeded}
    return history


def _calls(stage: Stage) -> list[dict[str, Any]]:
    """What was called since the step before."""
    calls = list(stage.script.calls)
    stage.script.calls.clear()
    return calls
