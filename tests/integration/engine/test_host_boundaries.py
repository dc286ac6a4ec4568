"""Where host-driven calls may not start, and what becomes of those that never end or fail badly."""

import threading

import pytest
from sqlalchemy import text

from runtime import ToolContext, start_governed_agent_session, tool
from runtime.agent_runtime import AgentRuntime
from runtime.engine import host
from runtime.engine.host_crashes import sweep_crashed
from runtime.errors import SessionConflict
from tests.harness.ledger_tools import Entry
from tests.harness.sessions import context, turn_input

NAMES = ("edge:read", "edge:once", "edge:mute", "edge:exit")


def bookkeeping():
    return context(metadata={"agent_intent": "bookkeeping"})


class Unspeakable(Exception):
    """An error whose text cannot be made."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Final(Unspeakable):
    """One that would end the process instead of giving its text."""

    def __str__(self):
        raise SystemExit(3)


class Tools:
    """Tools that a test steers."""

    def __init__(self):
        self.ran, self.then, self.inside = 0, lambda: None, threading.Event()

    def definitions(self):
        def act(input: Entry, ctx: ToolContext) -> dict[str, str]:
            """Do what the test says."""
            self.ran += 1
            self.inside.set()
            self.then()
            return {"did": input.name}

        return [
            tool("edge:read", effect="read", time_limit=0.1)(act),
            tool("edge:once", effect="once", time_limit=0.1)(act),
            tool("edge:mute")(self._raising(Unspeakable)),
            tool("edge:exit")(self._raising(Final)),
        ]

    @staticmethod
    def _raising(kind):
        def fail(input: Entry, ctx: ToolContext) -> dict[str, str]:
            """Fail without a word."""
            raise kind

        return fail


@pytest.fixture
def tools():
    return Tools()


@pytest.fixture
def application(folder, migrated_url, valkey, tools, monkeypatch):
    """A runtime whose leases are short."""
    monkeypatch.setenv("AGENT_RUNTIME_LEASE_SECONDS", "1")
    monkeypatch.setenv("AGENT_RUNTIME_HEARTBEAT_SECONDS", "0.1")
    path = folder / "workspace.yaml"
    allowed = ", ".join(f'"{name}"' for name in NAMES)
    path.write_text(path.read_text().replace("allow_tools: [", f"allow_tools: [{allowed}, "))
    with AgentRuntime.open(
        path, database_url=migrated_url, redis_url=valkey.url, tools=tools.definitions()
    ) as found:
        yield found


def stop(application, sql):
    """Bring the session into a state, as another process would."""
    with application.parts.database.writing() as connection:
        connection.execute(text(sql))


# --- sessions in which nothing starts -------------------------------------------------------------


def test_a_call_in_a_paused_session_is_refused_until_it_is_unpaused(application, tools):
    application.execute_tool("edge:read", {"name": "a"}, bookkeeping()).unwrap()
    application.pause("s-1")
    with pytest.raises(SessionConflict, match="'s-1' is paused; unpause it"):
        application.execute_tool("edge:read", {"name": "b"}, bookkeeping())
    assert tools.ran == 1
    application.unpause("s-1")
    assert application.execute_tool("edge:read", {"name": "c"}, bookkeeping()).success


def test_a_call_in_a_session_that_has_ended_is_refused_and_leaves_its_evidence_as_it_was(runtime, workers):
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=context()
    )
    workers.drain()
    assert flow.status() == "completed"
    receipts = runtime.verify("s-1")
    with pytest.raises(SessionConflict, match="'s-1' has ended as completed; use another id"):
        runtime.execute_tool("ledger:put", {"name": "late"}, bookkeeping())
    assert runtime.verify("s-1") == receipts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE session SET paused_at = 1", "is paused"),
        ("UPDATE session SET ended_status = 'completed', ended_at = 1", "has ended as completed"),
    ],
)
def test_a_pause_or_an_end_between_the_decision_and_the_start_refuses_the_call(
    application, tools, monkeypatch, change, said
):
    application.execute_tool("edge:read", {"name": "a"}, bookkeeping()).unwrap()
    left = [lambda: stop(application, change)]

    def reach(point):
        if point == "host_start.begin" and left:
            left.pop()()

    monkeypatch.setattr(application.parts.database.crash, "reach", reach)
    with pytest.raises(SessionConflict, match=said):
        application.execute_tool("edge:read", {"name": "b"}, bookkeeping())
    assert tools.ran == 1


# --- calls that do not end ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("edge:read", "failed"), ("edge:once", "in_doubt")])
def test_a_call_that_outlasts_its_time_limit_loses_its_lease_and_learns_so_when_it_returns(
    application, tools, monkeypatch, name, status
):
    monkeypatch.setattr(host, "GRACE_S", 0.0)
    never, outputs = threading.Event(), []
    tools.then = lambda: never.wait(60)
    caller = threading.Thread(
        target=lambda: outputs.append(application.execute_tool(name, {"name": "a"}, bookkeeping()))
    )
    caller.start()
    try:
        assert tools.inside.wait(30)
        tick = threading.Event()
        for _ in range(300):  # until the lease has run out, which its own thread must have stopped extending
            if sweep_crashed(application.parts):
                break
            tick.wait(0.1)
        with application.parts.database.reading() as connection:
            assert connection.execute(text("SELECT status FROM step")).scalar_one() == status
    finally:
        never.set()
        caller.join(30)
    (output,) = outputs
    assert output.data == {"did": "a"}
    assert output.metadata["recorded"] is False
    assert "its lease had run out" in output.metadata["warning"]


# --- errors without a text ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edge:mute", "edge:exit"])
def test_an_error_whose_text_cannot_be_made_still_ends_its_call_on_record(application, name):
    output = application.execute_tool(name, {"name": "a"}, bookkeeping())
    assert output.error.code == "TOOL_EXECUTION_FAILED"
    assert f"{name} raised" in output.error.message
    assert "its text could not be made" in output.error.message
    assert output.metadata["recorded"] is True
    kinds = [event.kind for event in application.session("s-1").events(timeout=0)]
    assert kinds == ["tool_call_started", "tool_call_finished"]
    assert application.verify("s-1").verified
