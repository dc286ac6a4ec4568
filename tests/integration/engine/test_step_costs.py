"""What one step of each kind costs, counted at the driver, as one table.

The table is exact: a count that rises is a loss and fails here, one that falls is a gain to write down. The
constitution's bounds are held against the table. ``pytest -s -n 0`` on this file prints what was counted.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session, start_governed_agent_workflow
from runtime.live.hints import StepHint
from tests.harness.counting import Counts, counting
from tests.harness.sessions import call, context, turn_input, workflow

# --- the table ------------------------------------------------------------------------------------

# Statements without BEGIN and COMMIT, commits, round trips to Redis of our own; no pings of the pool.
STEPS = {
    #                                   PostgreSQL            SQLite
    "a node's first turn":              (Counts(3, 2, 2), Counts(8, 2, 2)),
    "a turn":                           (Counts(3, 2, 2), Counts(7, 2, 2)),
    "a node's last turn":               (Counts(3, 2, 2), Counts(9, 2, 2)),
    "a node's only turn":               (Counts(3, 2, 2), Counts(10, 2, 2)),
    "a turn that six nodes follow":     (Counts(3, 2, 2), Counts(12, 2, 2)),
    "a turn that asks for two calls":   (Counts(3, 2, 2), Counts(7, 2, 2)),
    "a turn that asks for four calls":  (Counts(3, 2, 2), Counts(7, 2, 2)),
    "a sole call":                      (Counts(3, 2, 2), Counts(7, 2, 2)),
    "a sole call with a large output":  (Counts(3, 2, 2), Counts(8, 2, 2)),
    "one of several calls":             (Counts(3, 2, 2), Counts(6, 2, 2)),
    "a denied call":                    (Counts(2, 1, 1), Counts(5, 1, 1)),
    "a call that parks":                (Counts(2, 1, 1), Counts(6, 1, 1)),
    "a granted call":                   (Counts(3, 2, 2), Counts(8, 2, 2)),
    "a host's first call":              (Counts(4, 2, 2), Counts(8, 2, 2)),
    "a host's later call":              (Counts(3, 2, 2), Counts(6, 2, 2)),
}  # fmt: skip

ADVANCES = {
    #                                   PostgreSQL            SQLite
    "to one node":                      (Counts(5, 1, 0), Counts(5, 1, 0)),
    "to two nodes":                     (Counts(5, 1, 0), Counts(5, 1, 0)),
    "to six nodes":                     (Counts(5, 1, 0), Counts(5, 1, 0)),
    "to a join of three nodes":         (Counts(5, 1, 0), Counts(5, 1, 0)),
    "to the turn after several calls":  (Counts(4, 1, 0), Counts(4, 1, 0)),
    "of a session that waits":          (Counts(5, 1, 0), Counts(5, 1, 0)),
    "that settles a session":           (Counts(10, 1, 0), Counts(12, 1, 0)),
    "of a session that has ended":      (Counts(1, 1, 0), Counts(1, 1, 0)),
}  # fmt: skip

DIALECTS = ("postgresql", "sqlite")
STATEMENTS = {"postgresql": 8, "sqlite": 10}
COMMITS, REDIS = 2, 3
EDGE = 3
"""What a node's first and its last step may each add."""

EDGES = {
    "a node's first turn": 1,
    "a node's last turn": 1,
    "a node's only turn": 2,
    "a turn that six nodes follow": 2,
    "a host's first call": 1,
}
PROMOTED = {
    "to one node": 1,
    "to two nodes": 2,
    "to six nodes": 6,
    "to a join of three nodes": 1,
    "to the turn after several calls": 1,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", STEPS)
def test_each_kind_of_step_keeps_the_bounds(kind, dialect):
    cost = STEPS[kind][DIALECTS.index(dialect)]
    assert cost.statements <= STATEMENTS[dialect] + EDGE * EDGES.get(kind, 0)
    assert cost.commits <= COMMITS
    assert cost.redis <= REDIS


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("kind", "promoted"), PROMOTED.items())
def test_an_advance_takes_at_most_five_statements_per_node_it_promotes(kind, promoted, dialect):
    assert ADVANCES[kind][DIALECTS.index(dialect)].statements <= 5 * promoted


# --- how each kind comes about --------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """What is started, and the label of the hint that is counted (`label`)."""

    start: Callable
    hint: str
    approved: bool = False


def session(*turns: str) -> Callable:
    def start(runtime):
        start_governed_agent_session(
            runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(), max_turns=40
        )

    return start


def graph(**nodes: tuple) -> Callable:
    def start(runtime):
        start_governed_agent_workflow(runtime=runtime, workflow=workflow("s-1", **nodes), ctx=context())

    return start


def fan_out(width: int) -> Callable:
    """Nodes that each have one dependency, the same."""
    return graph(first=(["/say A."], ()), **{f"b{n}": (["/say B."], ("first",)) for n in range(width)})


def joins(width: int) -> Callable:
    """Nodes that each wait for the same two."""
    return graph(
        one=(["/say A."], ()),
        two=(["/say A."], ()),
        **{f"b{n}": (["/say B."], ("one", "two")) for n in range(width)},
    )


def several(count: int) -> str:
    return "\n".join(call("ledger:read", str(n)) for n in range(count))


def label(hint) -> str:
    """What a hint is for: ``turn 1`` (the second), ``tool_call 0`` (of the first turn) or ``advance``."""
    return f"{hint.kind} {hint.step_id.split('.')[-2]}" if isinstance(hint, StepHint) else "advance"


READ, DONE = call("ledger:read"), "/say Done."
JOIN = graph(**{name: (["/say A."], ()) for name in "abc"}, join=(["/say B."], ("a", "b", "c")))

SITUATIONS = {
    "a node's first turn": Situation(session(READ, DONE), "turn 0"),
    "a turn": Situation(session(READ, READ, DONE), "turn 1"),
    "a node's last turn": Situation(session(READ, DONE), "turn 1"),
    "a node's only turn": Situation(session(DONE), "turn 0"),
    "a turn that six nodes follow": Situation(fan_out(6), "turn 0"),
    "a turn that asks for two calls": Situation(session(READ, several(2), DONE), "turn 1"),
    "a turn that asks for four calls": Situation(session(READ, several(4), DONE), "turn 1"),
    "a sole call": Situation(session(READ, DONE), "tool_call 0"),
    "a sole call with a large output": Situation(session(call("ledger:big", "abcd"), DONE), "tool_call 0"),
    "one of several calls": Situation(session(several(3), DONE), "tool_call 0"),
    "a denied call": Situation(session(call("ledger:put", "secret"), DONE), "tool_call 0"),
    "a call that parks": Situation(session(call("ledger:guarded"), DONE), "tool_call 0"),
    "a granted call": Situation(session(call("ledger:guarded"), DONE), "tool_call 0", approved=True),
    "to one node": Situation(joins(1), "advance"),
    "to two nodes": Situation(joins(2), "advance"),
    "to six nodes": Situation(joins(6), "advance"),
    "to a join of three nodes": Situation(JOIN, "advance"),
    "to the turn after several calls": Situation(session(several(3), DONE), "advance"),
    "of a session that waits": Situation(session(call("ledger:guarded"), DONE), "advance"),
    "that settles a session": Situation(session(DONE), "advance"),
}


def come_to(situation, runtime, workers):
    """Run a session until the hint to be counted is the next."""
    situation.start(runtime)
    if situation.approved:
        workers.drain()
        (request,) = runtime.approvals("s-1")
        runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    while label(workers.inbox.hints[0]) != situation.hint:
        workers.next()
    if situation.hint == "advance":
        run_steps_first(workers)


def run_steps_first(workers):
    """Leave the advances only, so that the one that is counted has something to promote."""
    inbox = workers.inbox
    while steps := [hint for hint in inbox.hints if isinstance(hint, StepHint)]:
        inbox.hints = [*steps, *(hint for hint in inbox.hints if hint not in steps)]
        workers.next()


def settled(runtime):
    """Nothing is on its way to Redis, and a connection is open."""
    assert runtime.parts.live.flush()
    runtime.parts.live.client().ping()


def count_next(runtime, workers):
    settled(runtime)
    with counting(runtime.parts.database) as cost:
        workers.next()
    return cost


def compare(kind, cost, table, dialect):
    """Hold what was counted against the table, and show it."""
    found, expected = cost.counts, table[kind][DIALECTS.index(dialect)]
    print(f"\n{kind:<34}{dialect:<12}" + "".join(f"{n} {what:<12}" for what, n in found._asdict().items()))
    assert found == expected, "\n".join(cost.sent)


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in STEPS if kind in SITUATIONS])
def test_a_step_costs_what_the_table_says(runtime, workers, kind):
    come_to(SITUATIONS[kind], runtime, workers)
    compare(kind, count_next(runtime, workers), STEPS, runtime.parts.database.dialect)


@pytest.mark.parametrize(("kind", "before"), [("a host's first call", 0), ("a host's later call", 5)])
def test_a_host_call_costs_what_the_table_says(runtime, kind, before):
    ctx = context("s-host", metadata={"agent_intent": "bookkeeping"})
    for _ in range(before):
        runtime.execute_tool("ledger:read", {"name": "x"}, ctx).unwrap()
    settled(runtime)
    with counting(runtime.parts.database) as cost:
        runtime.execute_tool("ledger:read", {"name": "x"}, ctx).unwrap()
    compare(kind, cost, STEPS, runtime.parts.database.dialect)


@pytest.mark.parametrize("kind", [kind for kind in ADVANCES if kind in SITUATIONS])
def test_an_advance_costs_what_the_table_says(runtime, workers, kind):
    come_to(SITUATIONS[kind], runtime, workers)
    cost = count_next(runtime, workers)
    promoted = {hint.step_id for hint in workers.inbox.hints if isinstance(hint, StepHint)}
    assert len(promoted) == PROMOTED.get(kind, 0)
    compare(kind, cost, ADVANCES, runtime.parts.database.dialect)


def test_an_advance_of_an_ended_session_costs_what_the_table_says(runtime, workers):
    session(DONE)(runtime)
    hint = workers.next()
    workers.drain()
    workers.runtime.executor().advance(hint.session_id)
    with counting(runtime.parts.database) as cost:
        workers.runtime.executor().advance(hint.session_id)
    compare("of a session that has ended", cost, ADVANCES, runtime.parts.database.dialect)


def test_the_table_lists_what_is_counted():
    by_host = {"a host's first call", "a host's later call"}
    assert {*STEPS, *ADVANCES} == {*SITUATIONS, *by_host, "of a session that has ended"}


def test_the_sixtieth_step_of_a_session_costs_what_the_third_costs(runtime, workers):
    session(*([READ] * 31), DONE)(runtime)
    costs = defaultdict(list)
    while workers.inbox.hints:
        kind = label(workers.inbox.hints[0]).split()[0]
        costs[kind].append(count_next(runtime, workers).counts)
    turns, calls = costs["turn"], costs["tool_call"]
    assert (len(turns), len(calls)) == (32, 31)
    assert set(turns[1:-1]) == {turns[1]}  # the third step to the one but last
    assert set(calls) == {calls[0]}


@pytest.mark.parametrize("width", [1, 6])
def test_a_branch_costs_the_same_beside_none_and_beside_five(runtime, workers, width):
    fan_out(width)(runtime)
    costs = []
    while workers.inbox.hints:
        hint = workers.inbox.hints[0]
        cost = count_next(runtime, workers)
        if isinstance(hint, StepHint) and hint.node_id != "first":
            costs.append(cost.counts)
    expected = STEPS["a node's only turn"][DIALECTS.index(runtime.parts.database.dialect)]
    assert costs == [expected] * width


# --- the counter itself ---------------------------------------------------------------------------


def test_a_batch_counts_as_often_as_the_driver_runs_it(database):
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE counted (n INTEGER)"))
    with counting(database) as cost, database.writing() as connection:
        connection.execute(text("INSERT INTO counted VALUES (:n)"), [{"n": n} for n in range(3)])
    assert (len(cost.sent), cost.commits) == (3, 1)


def test_a_write_outside_a_transaction_counts_as_a_commit(database):
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE counted (n INTEGER)"))
    with counting(database) as cost, database.reading() as connection:
        connection.execute(text("INSERT INTO counted VALUES (1)"))
        connection.execute(text("SELECT n FROM counted")).all()
    assert (len(cost.sent), cost.commits) == (2, 1)
