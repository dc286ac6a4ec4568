"""The pages behind the listings are the same on SQLite and PostgreSQL."""

import pytest

from runtime import AgentRuntime, start_governed_agent_workflow
from runtime.store.evidence import read_blobs, snapshot
from runtime.store.listing import last_continuations, list_sessions, list_steps, list_votes


@pytest.fixture
def opened(home, database, migrated_url):
    with AgentRuntime.open(home / "workspace.yaml", database_url=migrated_url, state_dir=home) as found:
        yield found


def context(session_id):
    return {
        "run_id": "r",
        "task_id": "t",
        "session_id": session_id,
        "metadata": {"agent_intent": "tidying"},
    }


def test_sessions_steps_votes_and_blobs_are_paged(opened, database):
    for number in range(3):
        opened.execute_tool("notes:read", {"text": f"{number}" * 2000}, context("../paged"))
        opened.execute_tool("notes:read", {"text": "x"}, context(f"other-{number}"))
    parked = opened.execute_tool("notes:delete", {"text": "x"}, context("../paged"))
    request_id = parked.error.details["request_id"]
    opened.resolve_approval(request_id=request_id, approved=False, approved_by="somebody", reason="no")

    first = [each.session.id for each in list_sessions(database, limit=2)]
    second = [each.session.id for each in list_sessions(database, before=first[-1], limit=9)]
    assert first + second == ["other-2", "other-1", "other-0", "../paged"]

    ids = [step.id for step in list_steps(database, "../paged")]
    assert [step.id for step in list_steps(database, "../paged", after=ids[1], limit=1)] == ids[2:3]
    assert len(ids) == 4
    assert [(vote.approved, vote.reason) for vote in list_votes(database, request_id)] == [(False, "no")]
    with snapshot(database) as connection:
        assert len(dict(read_blobs(connection, "../paged"))) == 3
    assert [move["kind"] for move in last_continuations(database, "../paged")] == ["approval_required"]


def test_a_started_workflow_is_listed_with_its_nodes_and_first_steps(opened, database):
    turn = {"model_profile": "operations", "messages": [{"role": "user", "content": "go"}]}
    nodes = [{"id": f"n{n}", "execute_turn_input": turn} for n in range(3)]
    start_governed_agent_workflow(
        runtime=opened, workflow={"session_id": "wide", "nodes": nodes}, ctx=context("wide")
    )
    listed = list_sessions(database)[0]
    assert (listed.status, listed.nodes) == ("active", 3)
    steps = list_steps(database, "wide", limit=2)
    assert [step.node_id for step in steps] == ["n0", "n1"]
    assert [step.node_id for step in list_steps(database, "wide", after=steps[-1].id)] == ["n2"]
    assert last_continuations(database, "wide")[0]["kind"] == "created"


def test_an_empty_database_lists_no_sessions(database):
    assert list_sessions(database) == []
