"""Flower shows what agents do: turns and tool calls as separate tasks, with the ids to find them by."""

import ast
import sys
from pathlib import Path

import pytest

from runtime import ExecutionContext, start_governed_agent_session
from runtime.edges.demo.model_server import DemoModelServer
from runtime.edges.embedded import EmbeddedValkey, open_runtime, running_stack, stack_commands
from runtime.edges.supervisor import Command
from runtime.live.celery_settings import CALL_TASK, TURN_TASK
from runtime.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "first_turn"
SESSION = "session-seen-in-flower"
PROMPT = "/call calendar:list-events {}\n/turn\n/say There is one event."
CREDENTIALS = "operator:flowerpassword"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A workspace of its own on SQLite, and a private Valkey."""
    directory = tmp_path_factory.mktemp("flower")
    for name in ("workspace.yaml", "calendar_tools.py"):
        (directory / name).write_text((EXAMPLE / name).read_text())
    with EmbeddedValkey(directory / "state") as valkey:
        yield Settings.load(
            workspace=directory / "workspace.yaml", state_dir=directory / "state", redis_url=valkey.url
        )


@pytest.fixture(scope="module")
def flower(settings, environment, free_port, poll):
    """Two workers, beat and Flower; entered once Flower sees both workers."""
    port = free_port()
    with DemoModelServer() as model:
        extra = environment(AGENT_RUNTIME_BASE_URL=model.base_url, AGENT_RUNTIME_API_KEY="any")
        commands = stack_commands(settings, extra=extra)
        argv = (
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tasks",
            "flower",
            "--address=127.0.0.1",
            f"--port={port}",
        )
        seen_by = {**commands[0].env, "FLOWER_BASIC_AUTH": CREDENTIALS}
        commands += (Command("flower", argv, seen_by, ready="Visit me at"),)
        open_runtime(settings).close()
        with running_stack(commands, lambda name, line: None):
            watched = poll(f"http://127.0.0.1:{port}", CREDENTIALS)
            watched.until("/api/workers?refresh=1", lambda workers: len(workers) == 2)
            yield watched


@pytest.fixture(scope="module")
def tasks_of_a_session(settings, flower):
    """What Flower lists after a session with two turns and a tool call has run."""
    ctx = ExecutionContext(run_id="run", task_id="task", session_id=SESSION, allowed_scopes=[])
    turn = {
        "session_id": SESSION,
        "model_profile": "operations",
        "messages": [{"role": "user", "content": PROMPT}],
    }
    with open_runtime(settings) as runtime:
        session = start_governed_agent_session(runtime=runtime, execute_turn_input=turn, ctx=ctx)
        assert session.result(timeout=120).status == "completed"
        assert runtime.verify(SESSION).verified

    def done(tasks):
        named = [task["name"] for task in tasks.values() if task["state"] == "SUCCESS"]
        return named.count(TURN_TASK) >= 2 and named.count(CALL_TASK) >= 1

    return list(flower.until("/api/tasks?limit=1000", done).values())


@pytest.mark.parametrize("name", [TURN_TASK, CALL_TASK])
def test_a_task_of_each_kind_carries_its_session_and_node_ids(tasks_of_a_session, name):
    found = [ast.literal_eval(task["kwargs"]) for task in tasks_of_a_session if task["name"] == name]
    assert {(kwargs["session_id"], kwargs["node_id"]) for kwargs in found} == {(SESSION, "session")}


def test_turns_and_tool_calls_run_on_different_workers(tasks_of_a_session):
    workers = {
        name: {task["worker"].split("@")[0] for task in tasks_of_a_session if task["name"] == name}
        for name in (TURN_TASK, CALL_TASK)
    }
    assert workers == {TURN_TASK: {"turns"}, CALL_TASK: {"tools"}}


def test_a_task_says_nothing_but_ids(tasks_of_a_session):
    ours = [task for task in tasks_of_a_session if task["name"] in (TURN_TASK, CALL_TASK)]
    assert {frozenset(ast.literal_eval(task["kwargs"])) for task in ours} == {
        frozenset({"step_id", "session_id", "node_id"})
    }
    assert {task["args"] for task in ours} == {"()"}


def test_the_queue_of_each_task_is_shown(tasks_of_a_session):
    queues = {(task["name"], task["routing_key"]) for task in tasks_of_a_session}
    assert {(TURN_TASK, "turns"), (CALL_TASK, "tools")} <= queues
