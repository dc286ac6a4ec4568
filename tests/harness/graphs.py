"""Short ways to start a workflow of scripted nodes, to make nodes fail, and to ask what became of them."""

import json
from contextlib import contextmanager
from threading import Thread

from sqlalchemy import text

from runtime import Workflow, WorkflowNode, start_governed_agent_workflow
from runtime.agent_runtime import AgentRuntime
from runtime.edges.demo.model_server import DemoModelServer, Fault
from runtime.engine.handle import SessionHandle
from runtime.store.ids import node_uid
from tests.harness.sessions import context, turn_input


def node(id: str, *turns: str, **values) -> WorkflowNode:
    """A node whose turns are scripted; it says its own name unless told otherwise."""
    given = turn_input(*(turns or (f"/say {id}",)))
    return WorkflowNode.model_validate({"id": id, "execute_turn_input": given, **values})


def answer(intent: str, message: str = "") -> str:
    """A turn that says what it is about."""
    return f"/raw {json.dumps({'status': 'complete', 'intent': intent, 'assistant_message': message})}"


def start(runtime: AgentRuntime, *nodes: WorkflowNode, session_id="s-1", principal=None, **values):
    """Start a workflow of these nodes."""
    return start_governed_agent_workflow(
        runtime=runtime,
        workflow=Workflow(session_id=session_id, nodes=nodes),
        ctx=context(session_id, principal=principal),
        **values,
    )


def fail(model: DemoModelServer, match: str, times: int = 1) -> None:
    """Let the model server refuse turns in a way that no retry mends."""
    body = json.dumps({"error": {"message": "no such model", "code": "model_not_found"}})
    model.faults.add(Fault(match=match, times=times, status=400, body=body))


@contextmanager
def in_flight(model: DemoModelServer, match: str, work):
    """Do work in a thread and hold the turn whose request contains ``match``; let it go behind the block."""
    model.faults.hold(match)
    thread = Thread(target=work)
    thread.start()
    try:
        assert model.faults.wait_held()
        yield
    finally:
        model.faults.release()
        thread.join(30)
    assert not thread.is_alive()


def statuses(flow: SessionHandle) -> dict[str, str]:
    """The state of each node."""
    return {each.id: str(each.status) for each in flow.nodes()}


def kinds(flow: SessionHandle, of: str | None = None) -> list[str]:
    """The kinds of a session's continuations, or of those of one node."""
    return [each["kind"] for each in flow.continuations() if of is None or each.get("node_id") == of]


def numbers(flow: SessionHandle) -> list[int | None]:
    """The numbers of a session's continuations."""
    return [each.get("sequence") for each in flow.continuations()]


def said(flow: SessionHandle, of: str) -> str:
    """What a node's last turn said."""
    return next(each.result for each in flow.nodes() if each.id == of)["assistant_message"]


def transcript(runtime: AgentRuntime, of: str, session_id="s-1") -> list[tuple[int, str, str]]:
    """A node's messages: number, role, content."""
    rows = run_sql(
        runtime,
        "SELECT number, role, content FROM message WHERE node_uid = :uid ORDER BY number",
        uid=node_uid(session_id, of),
    )
    return [(row.number, row.role, json.loads(row.content)["content"]) for row in rows]


def run_sql(runtime: AgentRuntime, sql: str, **values):
    """Run one statement; return its rows if it has any."""
    with runtime.parts.database.writing() as connection:
        result = connection.execute(text(sql), values)
        return result.all() if result.returns_rows else []


def user(words: str) -> dict[str, str]:
    """A message of the user's."""
    return {"role": "user", "content": words}
