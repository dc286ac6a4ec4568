"""An answer to an approval request says who gave it, and how that is known."""

import pytest

from runtime import start_governed_agent_session
from runtime.errors import InvalidInput
from tests.harness.counting import counting
from tests.harness.graphs import node, run_sql, start, statuses
from tests.harness.sessions import call, context, turn_input


@pytest.fixture
def request_id(runtime):
    """A request that waits."""
    output = runtime.execute_tool(
        "ledger:guarded", {"name": "x"}, context(metadata={"agent_intent": "bookkeeping"})
    )
    return output.error.details["request_id"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"approved_by": ""}, "approved_by '' cannot be used"),
        ({"approved_by": "a\x00b"}, r"approved_by 'a\\x00b' cannot be used"),
        ({"approved_by": "a\udc80b"}, r"approved_by 'a\\udc80b' cannot be used"),
        ({"approved": "no"}, "approved is of type str; give True or False"),
    ],
)
def test_an_answer_that_does_not_say_who_or_how_is_refused_and_the_request_still_waits(
    runtime, request_id, given, said
):
    answer = {"approved": True, "approved_by": "ann", **given}
    with pytest.raises(InvalidInput, match=said):
        runtime.resolve_approval(request_id=request_id, **answer)
    assert [each.request_id for each in runtime.approvals("s-1")] == [request_id]


@pytest.mark.parametrize("reason", ["two\nlines", "a\x00b", "a\udc80b"])
def test_a_reason_is_free_text_and_kept_as_given(runtime, request_id, reason):
    runtime.resolve_approval(request_id=request_id, approved=False, approved_by="ann", reason=reason)
    (found,) = runtime.approvals("s-1", status="denied")
    assert found.reason == reason
    assert runtime.verify("s-1").verified


@pytest.mark.parametrize("approved", [True, False])
def test_an_answer_costs_three_reads_and_one_change_in_one_transaction(runtime, workers, approved):
    start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(call("ledger:guarded"), "/say Done."), ctx=context()
    )
    workers.drain()
    (request,) = runtime.approvals("s-1")
    with counting(runtime.parts.database) as cost:
        runtime.resolve_approval(request_id=request.request_id, approved=approved, approved_by="ann")
    reads = [each for each in cost.sent if each.lstrip().upper().startswith("SELECT")]
    assert (len(reads), cost.commits) == (3, 1)
    if runtime.parts.database.dialect == "postgresql":
        assert len(cost.sent) == 4


# --- the node behind the answer -------------------------------------------------------------------


def test_a_node_waits_until_each_of_its_questions_is_answered(runtime, workers):
    both = "\n".join([call("ledger:guarded", "a"), call("ledger:guarded", "b")])
    flow = start(runtime, node("a", both, "/say Done."))
    workers.drain()
    first, second = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=first.request_id, approved=True, approved_by="ann")
    assert statuses(flow) == {"a": "waiting_approval"}
    workers.drain()
    assert (flow.status(), statuses(flow)) == ("waiting_approval", {"a": "waiting_approval"})
    runtime.resolve_approval(request_id=second.request_id, approved=True, approved_by="ann")
    assert statuses(flow) == {"a": "running"}
    workers.drain()
    assert flow.status() == "completed"


@pytest.mark.parametrize("approved", [True, False])
def test_a_node_with_a_quarantined_call_is_suspended_once_its_question_is_answered(
    runtime, workers, approved
):
    both = "\n".join([call("ledger:guarded", "g"), call("ledger:read", "r")])
    flow = start(runtime, node("a", both, "/say Done."))
    workers.next()
    (other,) = run_sql(runtime, "SELECT id FROM step WHERE tool_name = 'ledger:read'")
    workers.inbox.hints = [hint for hint in workers.inbox.hints if hint.step_id != other.id]
    lost = "UPDATE step SET status = 'running', fence = 1, attempts = 1, crashes = 20, lease_until = 1 "
    run_sql(runtime, lost + "WHERE id = :id", id=other.id)
    workers.drain()
    runtime.executor().run_step(other.id, ("tools",))
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=approved, approved_by="ann")
    workers.drain()
    assert (flow.status(), statuses(flow)) == ("suspended", {"a": "suspended"})
    runtime.resume("s-1")
    workers.drain()
    assert flow.status() == "completed"
