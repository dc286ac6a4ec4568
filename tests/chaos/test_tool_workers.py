"""A worker of tools is lost in mid-call: what is idempotent runs again, what happens once is in doubt."""

import signal

import pytest

from runtime import start_governed_agent_session
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import until
from tests.harness.witness import (
    idempotency_keys,
    ledger,
    let_go,
    receipts,
    results,
    verified_by_another_process,
)

TAKEN_OVER = "was taken over while this worker ran it"


def start(runtime, *turns):
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context("s-1")
    )


def question(runtime):
    """The only request that a person is asked to answer."""
    (found,) = runtime.approvals("s-1")
    assert (found.kind, found.tool_name) == ("in_doubt", "ledger:pay")
    return found


def leave_it(runtime):
    """Answer that the call in doubt is not to run again."""
    runtime.resolve_approval(
        request_id=question(runtime).request_id, approved=False, approved_by="operator@example.com"
    )


@pytest.mark.parametrize(
    ("attached", "point", "effects"),
    [
        ("sqlite", "start.after_commit", {}),
        ("postgresql", "start.after_commit", {}),
        ("sqlite", "record.before_commit", {"pay rent": 1}),
        ("postgresql", "record.before_commit", {"pay rent": 1}),
    ],
    indirect=["attached"],
)
def test_a_once_call_that_a_crash_cut_off_is_in_doubt_and_never_runs_again(
    attached, stack, tmp_path, point, effects
):
    marker = tmp_path / "crashed"
    with stack(own={"tools": {"AGENT_RUNTIME_CRASH_AT": f"{point}:1:{marker}"}}):
        flow = start(attached, call("ledger:pay", "rent"), "/say Noted.")
        assert flow.wait(until={"waiting_approval"}, timeout=150)
        assert marker.exists(), "the crash point was never reached"
        assert results(flow, "ledger:pay") == ["crashed", "in_doubt"]
        leave_it(attached)
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == effects
    assert len(receipts(flow, "tool_call_started", "ledger:pay")) == 1
    assert verified_by_another_process(attached)


def test_a_frozen_worker_of_an_idempotent_call_is_replaced_and_only_testifies_when_it_wakes_up(
    attached, stack
):
    with stack() as workers:
        flow = start(attached, call("ledger:put", "a", hold=True), "/say Done.")
        until(lambda: ledger()["put a"] == 1)
        frozen = workers.freeze("tools")
        workers.start("tools-2", like="tools")
        until(lambda: ledger()["put a"] == 2)
        let_go()
        assert flow.wait(timeout=150) == "completed"
        before = flow.nodes()[0]
        for process in frozen:
            process.send_signal(signal.SIGCONT)
        until(lambda: workers.said(TAKEN_OVER))
        assert flow.nodes()[0] == before
    assert ledger() == {"put a": 2}
    assert len(idempotency_keys("put a")) == 1, "a repeat must carry the same idempotency key"
    # The first holder crashed, the second one ended the call, and the first one testified.
    assert sorted(results(flow, "ledger:put")) == ["crashed", "success", "success"]
    assert verified_by_another_process(attached)


def test_a_frozen_worker_of_a_once_call_leaves_it_in_doubt_also_when_it_wakes_up(attached, stack):
    with stack() as workers:
        flow = start(attached, call("ledger:pay", "rent", hold=True), "/say Noted.")
        until(lambda: ledger()["pay rent"] == 1)
        frozen = workers.freeze("tools")
        workers.start("tools-2", like="tools")
        assert flow.wait(until={"waiting_approval"}, timeout=150)
        asked = question(attached)
        let_go()
        for process in frozen:
            process.send_signal(signal.SIGCONT)
        until(lambda: workers.said(TAKEN_OVER))
        assert flow.status() == "waiting_approval"
        assert question(attached) == asked
        leave_it(attached)
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"pay rent": 1}
    assert verified_by_another_process(attached)
