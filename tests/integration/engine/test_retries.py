"""Retries, deadlines and calls that were cut off: what runs again, when, and what is asked first."""

import time

import pytest
from sqlalchemy import text

from runtime import ToolContext, ToolError, Workflow, WorkflowNode, start_governed_agent_workflow, tool
from runtime.agent_runtime import AgentRuntime
from runtime.core.model import ToolOutput
from runtime.edges.demo.model_server import Fault
from runtime.engine.sweep import sweep
from runtime.errors import ConfigurationError
from runtime.store.clock import Clock
from runtime.tools.process import ToolCrashed
from runtime.tools.reconcile import Reconciliation
from runtime.tools.runner import InProcessRunner
from tests.harness.sessions import call, context, turn_input


class Flaky:
    """Tools of one test, what they were called with, and how often they are to fail."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.failures = 0
        self.code = "BUSY"
        self.answer = Reconciliation.unknown()
        self.asked: list[str] = []

    def run(self, input: dict, ctx: ToolContext) -> dict:
        """Fail so many times, then work."""
        self.keys.append(ctx.idempotency_key)
        if self.failures:
            self.failures -= 1
            raise ToolError("not now", code=self.code)
        return {"ok": True}

    def reconcile(self, key: str) -> Reconciliation:
        self.asked.append(key)
        return self.answer


class Cut(InProcessRunner):
    """A runner that loses each call of one tool behind its effect, as a killed process does."""

    def __init__(self, times: int) -> None:
        self.times = times

    def run(self, tool, input_json, context, *, deadline_s, on_progress) -> ToolOutput:
        output = super().run(tool, input_json, context, deadline_s=deadline_s, on_progress=on_progress)
        if tool.name.startswith("flaky:") and self.times:
            self.times -= 1
            raise ToolCrashed("the process was killed")
        return output


@pytest.fixture
def declared(folder) -> Flaky:
    """Three tools of this test, which the workspace file allows."""
    path = folder / "workspace.yaml"
    allowed = '"flaky:idempotent", "flaky:once", "flaky:sure"'
    path.write_text(path.read_text().replace("allow_tools: [", f"allow_tools: [{allowed}, "))
    return Flaky()


@pytest.fixture
def runtime(folder, migrated_url, valkey, declared):
    busy = {"attempts": 3, "first_delay": "1s", "jitter": 0, "retry_on": ["BUSY"]}
    tools = [
        tool("flaky:idempotent", effect="idempotent", retry=busy)(declared.run),
        tool("flaky:once", effect="once")(declared.run),
        tool("flaky:sure", effect="once", reconcile=declared.reconcile)(declared.run),
    ]
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=migrated_url, redis_url=valkey.url, tools=tools
    ) as found:
        yield found


def start(runtime, *turns: str, **values):
    node = WorkflowNode.model_validate({"id": "a", "execute_turn_input": turn_input(*turns), **values})
    return start_governed_agent_workflow(
        runtime=runtime, workflow=Workflow(session_id="s-1", nodes=[node]), ctx=context("s-1")
    )


def one_call(name: str) -> str:
    return f"/call {name} {{}}"


def move_clock(runtime, seconds: float) -> None:
    """Let the database's clock say that so much time has passed."""
    database = runtime.parts.database
    before = database.clock.fixed_ms or round(time.time() * 1000)
    database.clock = Clock(before + round(seconds * 1000))


def waits(runtime) -> list[tuple[str, int]]:
    """Ready steps, and in how many milliseconds each is due."""
    database = runtime.parts.database
    with database.reading() as connection:
        rows = connection.execute(
            text(f"SELECT kind, due_at - {database.now_sql} AS due FROM step WHERE status = 'ready'")
        ).all()
    return [(row.kind, int(row.due)) for row in rows]


# --- tools ----------------------------------------------------------------------------------------


def test_a_failed_call_is_made_again_when_it_is_due_with_the_same_key(runtime, workers, declared):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    declared.failures = 2
    flow = start(runtime, one_call("flaky:idempotent"), "/say Done.")
    workers.drain()
    assert waits(runtime) == [("tool_call", pytest.approx(1_000, abs=400))]
    assert sweep(runtime.parts).ready == 0  # nobody waits for it, and nobody sends it early
    move_clock(runtime, 2)
    assert sweep(runtime.parts).ready == 1
    workers.drain()
    assert waits(runtime) == [("tool_call", pytest.approx(2_000, abs=400))]
    move_clock(runtime, 3)
    sweep(runtime.parts)
    workers.drain()
    assert flow.status() == "completed"
    assert len(declared.keys) == 3
    assert len(set(declared.keys)) == 1
    assert runtime.verify("s-1").verified


def test_attempts_end_and_the_model_is_told(runtime, workers, declared):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    declared.failures = 5
    flow = start(runtime, one_call("flaky:idempotent"), "/say Done.")
    for _ in range(4):
        workers.drain()
        move_clock(runtime, 10)
        sweep(runtime.parts)
    assert len(declared.keys) == 3
    assert flow.status() == "completed"
    finishes = [
        e.body for e in flow.events(timeout=0.1) if e.kind == "tool_call_finished" and e.tool_name != TURN
    ]
    assert [body["error"]["code"] for body in finishes] == ["BUSY"] * 3


TURN = "agent:execute-turn"


def test_another_code_is_not_worth_another_attempt(runtime, workers, declared):
    declared.failures, declared.code = 1, "NO_SUCH_ACCOUNT"
    flow = start(runtime, one_call("flaky:idempotent"), "/say Done.")
    workers.drain()
    assert flow.status() == "completed"
    assert len(declared.keys) == 1


def test_a_once_tool_may_be_retried_only_on_codes_that_it_names():
    with pytest.raises(ConfigurationError, match="'once' tool with a retry"):

        @tool("flaky:wrong", retry={"attempts": 2})
        def wrong(input: dict, ctx: ToolContext) -> dict:
            """Never declared."""
            return {}


# --- turns ----------------------------------------------------------------------------------------


def test_a_node_says_how_often_and_on_what_its_turns_are_retried(runtime, workers, model):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    model.faults.add(Fault(match="/say", times=9, status=400))
    retry = {"attempts": 2, "first_delay": "5s", "jitter": 0, "retry_on": ["PROVIDER_HTTP_ERROR"]}
    flow = start(runtime, "/say Done.", retry=retry)
    workers.drain()
    assert waits(runtime) == [("turn", pytest.approx(5_000, abs=400))]
    move_clock(runtime, 6)
    sweep(runtime.parts)
    workers.drain()
    assert flow.status() == "error"
    assert model.faults.state()["requests"] == 2


def test_retries_end_within_the_time_they_are_given(runtime, workers, model):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    model.faults.add(Fault(match="/say", times=9, status=503))
    flow = start(runtime, "/say Done.", retry={"attempts": 9, "first_delay": "4s", "within": "3s"})
    workers.drain()
    assert flow.status() == "error"
    assert model.faults.state()["requests"] == 1


# --- deadlines ------------------------------------------------------------------------------------


def failed(flow) -> dict:
    (node,) = flow.nodes()
    assert str(node.status) == "error"
    return node.error


def test_a_deadline_ends_a_node_that_waits_for_approval(runtime, workers):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    flow = start(runtime, call("ledger:guarded", "a"), "/say Done.", deadline="1h")
    workers.drain()
    assert flow.status() == "waiting_approval"
    move_clock(runtime, 3_601)
    for _ in range(3):
        sweep(runtime.parts)
        workers.drain()
        move_clock(runtime, 1)
    assert failed(flow)["code"] == "LIMIT_EXCEEDED"
    assert failed(flow)["details"]["limit"] == "deadline"
    assert flow.status() == "error"
    assert runtime.approvals("s-1") == []
    assert runtime.verify("s-1").verified


def test_a_deadline_ends_a_node_that_waits_for_a_retry(runtime, workers, model):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    model.faults.add(Fault(match="/say", times=9, status=503))
    flow = start(runtime, "/say Done.", deadline="1m", retry={"first_delay": "2h", "longest_delay": "2h"})
    workers.drain()
    move_clock(runtime, 61)
    for _ in range(2):
        sweep(runtime.parts)
        workers.drain()
        move_clock(runtime, 1)
    assert failed(flow)["details"]["limit"] == "deadline"
    assert model.faults.state()["requests"] == 1


def test_a_deadline_ends_a_suspended_node(runtime, workers):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    flow = start(runtime, call("ledger:read", "a"), "/say Done.", max_turns=1, deadline="1m")
    workers.drain()
    assert flow.status() == "suspended"
    move_clock(runtime, 61)
    for _ in range(2):
        sweep(runtime.parts)
        workers.drain()
        move_clock(runtime, 1)
    assert failed(flow)["details"]["limit"] == "deadline"


def until_ended(runtime, workers, flow):
    """Sweep until a session's deadline has ended it."""
    move_clock(runtime, 61)
    for _ in range(3):
        sweep(runtime.parts)
        workers.drain()
        move_clock(runtime, 1)
    assert failed(flow)["details"]["limit"] == "deadline"


def test_a_resume_gives_a_node_that_its_deadline_ended_as_long_again(runtime, workers, model):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    model.faults.add(Fault(match="/say", times=1, status=503))
    flow = start(runtime, "/say Done.", deadline="1m", retry={"first_delay": "2h", "longest_delay": "2h"})
    workers.drain()
    until_ended(runtime, workers, flow)
    runtime.resume("s-1")
    workers.drain()
    assert flow.status() == "completed"
    assert runtime.verify("s-1").verified


def test_a_resume_goes_on_behind_the_call_whose_question_ended_with_its_node(runtime, workers):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    flow = start(runtime, call("ledger:guarded", "a"), "/say Done.", deadline="1m")
    workers.drain()
    until_ended(runtime, workers, flow)
    runtime.resume("s-1")
    workers.drain()
    assert flow.status() == "completed"
    assert runtime.approvals("s-1") == []
    assert not any(each["result"] == "success" for each in finishes(flow)), "nobody approved the call"
    assert runtime.verify("s-1").verified


def test_a_resumed_node_has_a_deadline_again(runtime, workers, model):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    model.faults.add(Fault(match="/say one", times=1, status=400))
    both = "/say one\n" + call("ledger:guarded", "a")
    flow = start(runtime, both, "/say Done.", deadline="1m")
    workers.drain()
    assert flow.status() == "error"
    move_clock(runtime, 3_600)
    runtime.resume("s-1")
    workers.drain()
    assert flow.status() == "waiting_approval"
    until_ended(runtime, workers, flow)
    assert flow.status() == "error"


def test_a_resume_gives_retries_their_time_again(runtime, workers, model):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    model.faults.add(Fault(match="/say", times=1, status=400))
    model.faults.add(Fault(match="/say", times=1, status=503))
    flow = start(runtime, "/say Done.", retry={"attempts": 5, "first_delay": "1s", "within": "1m"})
    workers.drain()
    assert flow.status() == "error"
    move_clock(runtime, 3_600)
    runtime.resume("s-1")
    workers.drain()
    move_clock(runtime, 30)
    sweep(runtime.parts)
    workers.drain()
    assert flow.status() == "completed"


# --- calls that were cut off ----------------------------------------------------------------------


def finishes(flow) -> list[dict]:
    return [
        event.body
        for event in flow.events(timeout=0.1)
        if event.kind == "tool_call_finished" and event.tool_name not in (None, TURN)
    ]


def test_a_call_that_happened_is_recorded_with_its_output_and_not_made_again(runtime, workers, declared):
    runtime.parts.runner = Cut(1)
    declared.answer = Reconciliation.happened({"ok": True})
    flow = start(runtime, one_call("flaky:sure"), "/say Done.")
    workers.drain()
    assert flow.status() == "completed"
    assert len(declared.keys) == 1
    assert declared.asked == declared.keys
    assert [(body["result"], body["reconciled"]) for body in finishes(flow)] == [("success", "happened")]
    assert runtime.verify("s-1").verified


def test_a_call_whose_target_refuses_the_key_runs_again(runtime, workers, declared):
    runtime.parts.runner = Cut(1)
    declared.answer = Reconciliation.prevented()
    flow = start(runtime, one_call("flaky:sure"), "/say Done.")
    workers.drain()
    assert flow.status() == "completed"
    assert len(declared.keys) == 2
    assert [body["result"] for body in finishes(flow)] == ["crashed", "success"]
    assert runtime.verify("s-1").verified


def test_a_call_of_which_nobody_knows_waits_for_a_person(runtime, workers, declared):
    runtime.parts.runner = Cut(1)
    flow = start(runtime, one_call("flaky:sure"), "/say Done.")
    workers.drain()
    assert flow.status() == "waiting_approval"
    assert [body["reconciled"] for body in finishes(flow)] == ["unknown"]
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=False, approved_by="a@example.com")
    workers.drain()
    assert flow.status() == "completed"
    assert len(declared.keys) == 1


@pytest.mark.parametrize(
    ("answer", "calls", "results"),
    [
        (Reconciliation.happened({"ok": True}), 0, ["crashed", "success"]),
        (Reconciliation.prevented(), 1, ["crashed", "crashed", "success"]),
    ],
)
def test_a_call_whose_worker_was_lost_is_reconciled_too(runtime, workers, declared, answer, calls, results):
    runtime.parts.database.clock = Clock(1_800_000_000_000)
    declared.answer = answer
    flow = start(runtime, one_call("flaky:sure"), "/say Done.")
    workers.next()
    (hint,) = workers.inbox.hints
    claim = "UPDATE step SET status = 'running', fence = 1, lease_until = 1, attempts = 1 WHERE id = :id"
    with (
        runtime.parts.database.writing() as connection
    ):  # as a worker that died right behind its start left it
        connection.execute(text(claim), {"id": hint.step_id})
    workers.drain()
    assert flow.status() == "completed"
    assert declared.asked == [hint.step_id]
    assert len(declared.keys) == calls
    assert [body["result"] for body in finishes(flow)] == results


def test_an_answer_that_is_no_json_is_no_answer(runtime, workers, declared):
    declared.answer = Reconciliation.happened({"ok": object})
    runtime.parts.runner = Cut(1)
    flow = start(runtime, one_call("flaky:sure"), "/say Done.")
    workers.drain()
    assert flow.status() == "waiting_approval"
    assert [body["result"] for body in finishes(flow)] == ["in_doubt"]
