"""Rows of the journal, put straight into a database."""

from sqlalchemy import text

from runtime.core.model import StepKind
from runtime.store.engine import Database
from runtime.store.journal import apply
from runtime.store.rows import node_row, step_row
from runtime.store.tables import NodeRow, SessionRow, StepRow
from runtime.store.write import Change

WORKSPACE = "w" * 64


def insert_session(database: Database, session_id: str = "s", node_uid: str = "n") -> None:
    """One active session with one running node, under an active workspace."""
    change = Change()
    change.insert(
        SessionRow,
        [
            {
                "id": session_id,
                "kind": "session",
                "run_id": "r",
                "task_id": "t",
                "context": "{}",
                "definition_digest": "",
                "created_at": 0,
            }
        ],
    )
    change.insert(
        NodeRow,
        [
            node_row(
                uid=node_uid,
                session_id=session_id,
                node_id="node",
                status="running",
                definition='{"turn": {}, "context_from": []}',
                max_turns=12,
                turn_budget=12,
            )
        ],
    )
    assert apply(database, change)
    with database.writing() as connection:
        connection.execute(
            text(
                "INSERT INTO workspace_version (hash, path, active, activated_at) VALUES (:h, 'p', :yes, 0)"
            ),
            {"h": WORKSPACE, "yes": True},
        )


def insert_step(database: Database, step_id: str, session_id="s", node_uid="n", **values) -> None:
    """One step, ready and due unless told otherwise."""
    row = {
        "kind": StepKind.TURN,
        "turn_index": 0,
        "call_index": 0,
        "tool_name": "agent:execute-turn",
        "queue": "turns",
        "due_at": 0,
        "publish_at": 0,
        **values,
    }
    change = Change()
    change.insert(
        StepRow, [step_row(id=step_id, session_id=session_id, node_uid=node_uid, node_id="node", **row)]
    )
    assert apply(database, change)
