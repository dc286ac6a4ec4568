"""What evidence and people are told of a ``once`` call that was cut off, on both databases."""

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.engine.sweep import sweep
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input

SECRET = "hunter22-hunter22"

TOOLS = f'''
"""Tools that are cut off after they reported how far they were."""

import os
import sys
import threading

from ledger_tools import Entry

from runtime import ToolContext, tool


@tool("cut:exit", effect="once")
def exits(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Reports, writes a secret to its log, and ends its process."""
    ctx.progress({{"sent": 1}})
    ctx.progress({{"sent": 2}})
    print("the password is {SECRET}", file=sys.stderr, flush=True)
    os._exit(3)


@tool("cut:hang", effect="once", time_limit=0.4)
def hangs(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Reports and never returns."""
    ctx.progress({{"sent": 1}})
    threading.Event().wait()
    raise AssertionError
'''


@pytest.fixture
def folder(folder):
    """A workspace with these tools as well."""
    (folder / "cut_tools.py").write_text(TOOLS)
    path = folder / "workspace.yaml"
    given = path.read_text().replace("modules: [ledger_tools]", "modules: [ledger_tools, cut_tools]")
    path.write_text(given.replace("allow_tools: [", 'allow_tools: ["cut:exit", "cut:hang", '))
    return folder


@pytest.fixture
def runtime(folder, migrated_url, valkey):
    """Tools run in processes of their own, which can be cut off."""
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=migrated_url, redis_url=valkey.url, tool_processes=True
    ) as found:
        yield found


@pytest.fixture
def workers(runtime):
    return InlineWorkers(runtime)


def run_until_in_doubt(runtime, workers, tool):
    """Run a session with one call of a tool; return that step's receipts and the question."""
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(call(tool), "/say Done."), ctx=context()
    )
    workers.drain()
    assert flow.status() == "waiting_approval"
    assert runtime.verify("s-1").verified
    (question,) = runtime.approvals("s-1")
    return [event for event in flow.events(timeout=0) if event.tool_name == tool], question


def test_a_call_whose_process_died_tells_its_progress_and_exit_code(runtime, workers):
    receipts, question = run_until_in_doubt(runtime, workers, "cut:exit")
    assert [each.kind for each in receipts] == [
        "tool_call_started", "tool_call_progress", "tool_call_progress", "tool_call_finished",
    ]  # fmt: skip
    assert [each.body["snapshot"]["data"] for each in receipts[1:3]] == [{"sent": 1}, {"sent": 2}]
    finish = receipts[-1].body
    assert finish["result"] == "in_doubt"
    assert finish["error"]["details"] == {"reason": "in_doubt", "cause": "crashed", "exit_code": 3}
    assert "ended with exit code 3" in finish["error"]["message"]
    assert "ended with exit code 3" in question.message


def test_a_call_whose_time_ran_out_tells_the_limit_and_the_time_it_took(runtime, workers):
    receipts, question = run_until_in_doubt(runtime, workers, "cut:hang")
    started, progress, finish = (each.body for each in receipts)
    assert progress["snapshot"]["data"] == {"sent": 1}
    assert finish["error"]["details"] == {"reason": "in_doubt", "cause": "timeout", "seconds": 0.4}
    assert "did not end within 0.4 s" in question.message
    assert finish["duration_ms"] >= 400
    assert finish["at"] - started["at"] >= 400
    assert question.requested_at == finish["at"]


def test_what_the_tool_wrote_to_its_log_is_not_in_evidence(runtime, workers):
    _, question = run_until_in_doubt(runtime, workers, "cut:exit")
    assert SECRET not in question.message
    with runtime.parts.database.reading() as connection:
        kept = connection.execute(text("SELECT body FROM evidence UNION ALL SELECT content FROM blob"))
        assert [body for (body,) in kept if SECRET in body] == []


def test_a_call_whose_worker_was_lost_tells_that(runtime, workers, monkeypatch):
    class Lost(BaseException):
        pass

    def lost(point):
        if point == "start.after_commit":
            raise Lost

    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(call("ledger:pay"), "/say Done."), ctx=context()
    )
    workers.next()
    with monkeypatch.context() as patch:
        patch.setattr(runtime.parts.database.crash, "reach", lost)
        with pytest.raises(Lost):
            workers.next()
    with runtime.parts.database.writing() as connection:
        connection.execute(text("UPDATE step SET lease_until = 1 WHERE status = 'running'"))
        connection.execute(text("UPDATE step SET publish_at = 0"))
    sweep(runtime.parts)
    workers.drain()
    (question,) = runtime.approvals("s-1")
    assert "the worker that ran it was lost" in question.message
    finish = [each.body for each in flow.events(timeout=0) if each.tool_name == "ledger:pay"][-1]
    assert finish["error"]["details"] == {"reason": "in_doubt", "cause": "worker_lost"}
    assert runtime.verify("s-1").verified


def test_a_host_driven_call_that_is_cut_off_tells_the_same(runtime):
    ctx = context(metadata={"agent_intent": "bookkeeping"})
    output = runtime.execute_tool("cut:hang", {"name": "x"}, ctx)
    assert output.error.details == {"reason": "in_doubt", "cause": "timeout", "seconds": 0.4}
    with runtime.parts.database.reading() as connection:
        assert connection.execute(text("SELECT status FROM step")).scalar_one() == "in_doubt"
    started, progress, finish = (event.body for event in runtime.session("s-1").events(timeout=0))
    assert progress["snapshot"]["data"] == {"sent": 1}
    assert finish["at"] - started["at"] >= 400
    assert finish["duration_ms"] >= 400
