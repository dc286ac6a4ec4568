"""An answer to an approval request says who gave it, and how that is known."""

import pytest

from runtime.errors import InvalidInput
from tests.harness.sessions import context


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
        (
            {"established_by": "kernel"},
            "established_by is 'kernel'; give one of asserted, os-user, http-auth",
        ),
        ({"established_by": ""}, "established_by is ''; give one of"),
        ({"established_by": None}, "established_by is 'None'; give one of"),
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


@pytest.mark.parametrize("established_by", ["asserted", "os-user", "http-auth"])
def test_each_way_to_know_who_answers_is_accepted(runtime, request_id, established_by):
    found = runtime.resolve_approval(
        request_id=request_id, approved=False, approved_by="ann", established_by=established_by
    )
    assert found.approved_by == "ann"
    assert runtime.approvals("s-1") == []


@pytest.mark.parametrize("reason", ["two\nlines", "a\x00b", "a\udc80b"])
def test_a_reason_is_free_text_and_kept_as_given(runtime, request_id, reason):
    runtime.resolve_approval(request_id=request_id, approved=False, approved_by="ann", reason=reason)
    (found,) = runtime.approvals("s-1", status="denied")
    assert found.reason == reason
    assert runtime.verify("s-1").verified
