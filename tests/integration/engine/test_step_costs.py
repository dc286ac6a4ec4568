"""What one step costs, counted at the driver: statements, commits and Redis round trips.

The bounds are the constitution's: at most 2 commits, 8 statements on PostgreSQL and 10 on SQLite, and 3
Redis round trips, whatever came before the step; a node's first and last step may each add 3.
"""

import pytest

from runtime import start_governed_agent_session, start_governed_agent_workflow
from runtime.live.hints import AdvanceHint, StepHint
from tests.harness.counting import counting
from tests.harness.sessions import call, context, turn_input, workflow

STATEMENTS = {"postgresql": 8, "sqlite": 10}
EDGE = 3


def run_until(workers, wanted):
    """Run hints until the next one is wanted; leave it in the inbox."""
    while not wanted(workers.inbox.hints[0]):
        workers.next()


def is_step(kind, turn=None):
    def wanted(hint):
        return (
            isinstance(hint, StepHint)
            and hint.kind == kind
            and (turn is None or hint.step_id.split(".")[-2] == str(turn))
        )

    return wanted


def cost_of_next(runtime, workers, monkeypatch):
    runtime.parts.live.client().ping()  # connections are made before counting
    with counting(runtime.parts.database, monkeypatch) as cost:
        workers.next()
    return cost


def check(cost, runtime, extra=0):
    dialect = runtime.parts.database.dialect
    assert len(cost.statements) <= STATEMENTS[dialect] + extra, "\n".join(cost.statements)
    assert cost.commits <= 2, cost.statements
    assert cost.redis <= 3


def start(runtime, *turns):
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(), max_turns=40
    )


MANY = [call("ledger:read", str(n)) for n in range(12)]


@pytest.mark.parametrize("turn", [1, 11])
def test_a_turn(runtime, workers, monkeypatch, turn):
    start(runtime, *MANY, "/say Done.")
    run_until(workers, is_step("turn", turn))
    check(cost_of_next(runtime, workers, monkeypatch), runtime)


def test_a_turn_costs_the_same_however_many_came_before(runtime, workers, monkeypatch):
    start(runtime, *MANY, "/say Done.")
    costs = []
    for turn in (1, 11):
        run_until(workers, is_step("turn", turn))
        cost = cost_of_next(runtime, workers, monkeypatch)
        costs.append((len(cost.statements), cost.commits, cost.redis))
    assert costs[0] == costs[1]


def test_a_nodes_first_turn(runtime, workers, monkeypatch):
    start(runtime, call("ledger:read"), "/say Done.")
    check(cost_of_next(runtime, workers, monkeypatch), runtime, EDGE)


def test_a_nodes_last_turn(runtime, workers, monkeypatch):
    start(runtime, call("ledger:read"), "/say Done.")
    run_until(workers, is_step("turn", 1))
    check(cost_of_next(runtime, workers, monkeypatch), runtime, EDGE)


def test_a_node_of_a_single_turn(runtime, workers, monkeypatch):
    start(runtime, "/say Done.")
    check(cost_of_next(runtime, workers, monkeypatch), runtime, 2 * EDGE)


def test_a_sole_call(runtime, workers, monkeypatch):
    start(runtime, call("ledger:big", "abcd"), "/say Done.")
    run_until(workers, is_step("tool_call"))
    check(cost_of_next(runtime, workers, monkeypatch), runtime)


def test_one_of_several_calls(runtime, workers, monkeypatch):
    start(runtime, "\n".join(call("ledger:big", name) for name in ("aaaa", "bbbb", "cccc")), "/say Done.")
    run_until(workers, is_step("tool_call"))
    check(cost_of_next(runtime, workers, monkeypatch), runtime)


def test_a_denied_call(runtime, workers, monkeypatch):
    start(runtime, call("ledger:put", "secret"), "/say Done.")
    run_until(workers, is_step("tool_call"))
    cost = cost_of_next(runtime, workers, monkeypatch)
    check(cost, runtime)
    assert cost.commits == 1


def test_a_parked_call(runtime, workers, monkeypatch):
    start(runtime, call("ledger:guarded"), "/say Done.")
    run_until(workers, is_step("tool_call"))
    check(cost_of_next(runtime, workers, monkeypatch), runtime)


def test_a_granted_call(runtime, workers, monkeypatch):
    start(runtime, call("ledger:guarded"), "/say Done.")
    workers.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    run_until(workers, is_step("tool_call"))
    check(cost_of_next(runtime, workers, monkeypatch), runtime)


@pytest.mark.parametrize("before", [0, 5])
def test_a_host_call(runtime, monkeypatch, before):
    ctx = context("s-host", metadata={"agent_intent": "bookkeeping"})
    for _ in range(before):
        runtime.execute_tool("ledger:big", {"name": "abcd"}, ctx).unwrap()
    runtime.parts.live.client().ping()
    with counting(runtime.parts.database, monkeypatch) as cost:
        assert runtime.execute_tool("ledger:big", {"name": "abcd"}, ctx).success
    check(cost, runtime)


@pytest.mark.parametrize("branches", [1, 2, 6])
def test_an_advance_takes_at_most_five_statements_however_many_it_promotes(
    runtime, workers, monkeypatch, branches
):
    names = [f"b{n}" for n in range(branches)]
    start_governed_agent_workflow(
        runtime=runtime,
        workflow=workflow(
            "s-1",
            first=(["/say A."], ()),
            **{name: (["/say B."], ("first",)) for name in names},
        ),
        ctx=context(),
    )
    run_until(workers, lambda hint: isinstance(hint, AdvanceHint))
    cost = cost_of_next(runtime, workers, monkeypatch)
    promoted = sum(isinstance(hint, StepHint) for hint in workers.inbox.hints)
    assert promoted == branches
    assert len(cost.statements) <= 5, "\n".join(cost.statements)
    assert cost.commits == 1


def test_an_advance_to_the_turn_after_several_calls(runtime, workers, monkeypatch):
    start(runtime, "\n".join(call("ledger:read", name) for name in "abc"), "/say Done.")
    run_until(workers, is_step("tool_call"))
    for _ in range(3):
        workers.next()
    workers.inbox.hints = workers.inbox.hints[-1:]
    cost = cost_of_next(runtime, workers, monkeypatch)
    assert isinstance(workers.inbox.hints[0], StepHint)
    assert len(cost.statements) <= 5, "\n".join(cost.statements)
