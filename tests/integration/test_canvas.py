"""Chords and chains as Celery itself runs them: what follows starts without coordinator and sweep."""

import shutil

import pytest
import redis

from runtime import Workflow, WorkflowNode, start_governed_agent_workflow
from runtime.agent_runtime import AgentRuntime
from runtime.edges.demo.model_server import DemoModelServer
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import running, until
from tests.harness.workspace import write_workspace


def node(id: str, *turns: str, depends_on=(), **values) -> WorkflowNode:
    given = turn_input(*(turns or (f"/say {id}",)), **values)
    return WorkflowNode(id=id, execute_turn_input=given, depends_on=depends_on)


def leaf(id: str, depends_on=()) -> WorkflowNode:
    return node(id, depends_on=depends_on, tool_catalog=[])


@pytest.fixture(scope="module")
def setting(tmp_path_factory, valkey, migrated_sqlite):
    """Workers that run turns and calls, and nothing that coordinates or sweeps."""
    folder = tmp_path_factory.mktemp("canvas")
    shutil.copy(migrated_sqlite, folder / "runtime.db")
    url = f"sqlite:///{folder / 'runtime.db'}"
    with DemoModelServer() as model, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_MODEL_KEY", "test-key")
        patch.setenv("LEDGER", str(folder / "ledger.txt"))
        workspace = write_workspace(folder / "workspace", model.base_url)
        with (
            AgentRuntime.open(
                workspace, database_url=url, redis_url=valkey.url, state_dir=folder / "state"
            ) as runtime,
            running(workspace, url, valkey.url, folder / "state", beat=False, queues={"turns": "turns"}),
        ):
            yield runtime


def ended(flow) -> bool:
    return all(str(each.status) == "completed" for each in flow.nodes())


def start(runtime, session_id, *nodes):
    return start_governed_agent_workflow(
        runtime=runtime, workflow=Workflow(session_id=session_id, nodes=nodes), ctx=context(session_id)
    )


def test_a_single_turn_join_starts_by_its_chord(setting):
    flow = start(setting, "s-chord", leaf("a"), leaf("b"), leaf("c"), leaf("join", ("a", "b", "c")))
    until(lambda: ended(flow), 60)
    assert [each.turn_count for each in flow.nodes()] == [1, 1, 1, 1]
    assert str(flow.status()) == "active"  # nobody advances it, so nobody ends it
    setting.executor().advance("s-chord")
    assert flow.status() == "completed"
    assert setting.verify("s-chord").verified


def test_a_line_of_nodes_goes_on_by_chains(setting):
    flow = start(setting, "s-chain", leaf("a"), leaf("b", ("a",)), leaf("c", ("b",)))
    until(lambda: ended(flow), 60)
    setting.executor().advance("s-chain")
    assert flow.status() == "completed"


def test_the_turn_after_several_calls_starts_by_their_chord(setting):
    calls = "\n".join([call("ledger:put", "a"), call("ledger:put", "b"), call("ledger:read", "c")])
    flow = start(setting, "s-calls", node("a", calls, "/say Done."))
    until(lambda: ended(flow), 60)
    (view,) = flow.nodes()
    assert (view.turn_count, view.tool_call_count) == (2, 3)
    assert setting.verify("s-calls").verified


def test_chords_leave_no_results_behind(setting, valkey):
    start(setting, "s-left", leaf("a"), leaf("b"), leaf("join", ("a", "b")))
    until(lambda: ended(setting.session("s-left")), 60)
    with redis.Redis.from_url(valkey.url) as client:
        assert list(client.scan_iter("celery-task-meta-*")) == []
