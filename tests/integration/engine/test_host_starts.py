"""The start of a host-driven call rests on what its decision saw, on both databases."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.engine import host
from runtime.errors import SessionConflict
from tests.harness.sessions import context, turn_input

CALLERS, LIMIT = 8, 3


@pytest.fixture
def folder(folder):
    """A workspace whose limits are low enough to be met."""
    path = folder / "workspace.yaml"
    given = path.read_text()
    for name in ("max_turns_per_session", "max_tool_calls_per_session"):
        assert f"{name}: 40" in given
        given = given.replace(f"{name}: 40", f"{name}: {LIMIT}")
    path.write_text(given)
    return folder


def ledger() -> list[str]:
    path = Path(os.environ["LEDGER"])
    return path.read_text().splitlines() if path.exists() else []


def bookkeeping(session_id="s-1", **values):
    return context(session_id, metadata={"agent_intent": "bookkeeping"}, **values)


def before_start(runtime, monkeypatch, action):
    """Act right before the first start that comes, when its call was decided."""
    left = [action]

    def reach(point):
        if point == "host_start.begin" and left:
            left.pop()()

    monkeypatch.setattr(runtime.parts.database.crash, "reach", reach)


def all_at_once(runtime, monkeypatch, work):
    """Do the same in several threads, none of which starts its call before all have decided theirs."""
    barrier, passed = threading.Barrier(CALLERS), threading.local()

    def reach(point):
        if point == "host_start.begin" and not hasattr(passed, "once"):
            passed.once = True
            barrier.wait(60)

    monkeypatch.setattr(runtime.parts.database.crash, "reach", reach)
    with ThreadPoolExecutor(CALLERS) as pool:
        return [call.result() for call in [pool.submit(work) for _ in range(CALLERS)]]


@pytest.mark.parametrize("made_before", [0, 1])
def test_of_several_calls_at_once_exactly_as_many_run_as_the_limit_allows(runtime, monkeypatch, made_before):
    for _ in range(made_before):
        runtime.execute_tool("ledger:put", {"name": "before"}, bookkeeping()).unwrap()
    outputs = all_at_once(
        runtime, monkeypatch, lambda: runtime.execute_tool("ledger:put", {"name": "a"}, bookkeeping())
    )
    assert sum(output.success for output in outputs) == LIMIT - made_before
    assert len(ledger()) == LIMIT
    assert {output.error.code for output in outputs if output.error} == {"LIMIT_EXCEEDED"}
    with runtime.parts.database.reading() as connection:
        assert connection.execute(text("SELECT tool_calls FROM node")).scalar_one() == CALLERS + made_before
    assert runtime.verify("s-1").verified


def test_of_several_turns_at_once_exactly_as_many_are_made_as_the_limit_allows(runtime, monkeypatch):
    turn = turn_input("/say Hello.", session_id="s-1")
    outputs = all_at_once(
        runtime, monkeypatch, lambda: runtime.execute_tool("agent:execute-turn", turn, bookkeeping())
    )
    assert sum(output.success for output in outputs) == LIMIT
    assert {output.error.code for output in outputs if output.error} == {"LIMIT_EXCEEDED"}
    assert runtime.verify("s-1").verified


def test_a_call_that_is_overtaken_again_and_again_is_refused_with_the_fix(runtime, monkeypatch):
    monkeypatch.setattr(host, "STARTS", 2)

    def overtake(point):
        if point == "host_start.begin":
            with runtime.parts.database.writing() as connection:
                connection.execute(text("UPDATE node SET tool_calls = tool_calls + 1"))

    runtime.execute_tool("ledger:read", {"name": "before"}, bookkeeping()).unwrap()
    ran = ledger()
    monkeypatch.setattr(runtime.parts.database.crash, "reach", overtake)
    with pytest.raises(SessionConflict, match="task ids of their own") as refused:
        runtime.execute_tool("ledger:put", {"name": "a"}, bookkeeping())
    assert refused.value.code == "too_many_at_once"
    assert ledger() == ran


def test_a_cancel_between_the_decision_and_the_start_refuses_the_call(runtime, monkeypatch):
    runtime.execute_tool("ledger:put", {"name": "before"}, bookkeeping()).unwrap()
    ran = ledger()
    before_start(runtime, monkeypatch, lambda: runtime.session("s-1").cancel())
    with pytest.raises(SessionConflict, match="was cancelled"):
        runtime.execute_tool("ledger:put", {"name": "a"}, bookkeeping())
    assert ledger() == ran


def test_a_cancel_before_a_sessions_first_host_call_starts_refuses_it_and_leaves_nothing(
    runtime, workers, monkeypatch
):
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=context()
    )
    before_start(runtime, monkeypatch, flow.cancel)
    with pytest.raises(SessionConflict, match="was cancelled"):
        runtime.execute_tool("ledger:put", {"name": "a"}, bookkeeping())
    assert ledger() == []
    with runtime.parts.database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM node WHERE mode = 'host'")).scalar_one() == 0


def test_a_session_that_another_principal_makes_first_refuses_the_call(runtime, monkeypatch):
    before_start(
        runtime,
        monkeypatch,
        lambda: runtime.execute_tool("ledger:put", {"name": "bob's"}, bookkeeping(principal="bob")).unwrap(),
    )
    with pytest.raises(SessionConflict, match="belongs to another principal"):
        runtime.execute_tool("ledger:put", {"name": "ann's"}, bookkeeping(principal="ann"))
    assert [line.split(" ", 1)[1].rsplit(" ", 2)[0] for line in ledger()] == ["bob's"]
