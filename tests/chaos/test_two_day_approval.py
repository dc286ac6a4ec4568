"""An approval that takes two days: nobody holds anything meanwhile, and the answer counts until it expires.

The days pass in the rows of the database, on both kinds of it.
"""

import pytest
import yaml

from runtime.agent_runtime import AgentRuntime
from runtime.engine.sweep import Swept, sweep
from runtime.errors import ApprovalRefused
from tests.harness.ageing import age, instants
from tests.harness.graphs import kinds, node, numbers, said, start, statuses
from tests.harness.inline import InlineWorkers
from tests.harness.mortal import rows_of
from tests.harness.sessions import call
from tests.harness.witness import ledger, receipts

TWO_DAYS = 2 * 24 * 3_600_000


@pytest.fixture
def expires_after() -> str:
    return "72h"


@pytest.fixture
def folder(folder, expires_after):
    """A workspace whose questions wait that long."""
    path = folder / "workspace.yaml"
    content = yaml.safe_load(path.read_text())
    content["agent_runtime"]["approvals"] = {"expires_after": expires_after}
    path.write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def reopened(folder, migrated_url, valkey):
    """The runtime of another process on the same database."""
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=migrated_url, redis_url=valkey.url
    ) as found:
        yield found


@pytest.fixture
def parked(runtime, workers):
    """A workflow of which one branch has waited for two days, and the other is done."""
    flow = start(
        runtime,
        node("asks", call("ledger:guarded", "g"), "/say Heard."),
        node("beside", call("ledger:put", "a"), "/say Beside."),
        node("join", depends_on=["asks", "beside"]),
    )
    workers.drain()
    assert statuses(flow) == {"asks": "waiting_approval", "beside": "completed", "join": "pending"}
    age(runtime.parts.database, TWO_DAYS)
    return flow


def resolve(runtime, request_id):
    runtime.resolve_approval(request_id=request_id, approved=True, approved_by="op@example.com")


def test_there_are_instants_to_move():
    assert {"due_at", "publish_at", "lease_until"} <= set(instants("step"))
    assert {"requested_at", "expires_at"} <= set(instants("approval"))


def test_an_answer_two_days_later_runs_the_approved_call_and_the_rest(runtime, workers, parked):
    (request,) = runtime.approvals("s-1")
    assert sweep(runtime.parts) == Swept(), "a parked session is nobody's work"
    assert workers.inbox.hints == []
    resolve(runtime, request.request_id)
    workers.drain()
    assert parked.status() == "completed"
    assert ledger() == {"put a": 1, "guarded g": 1}
    assert said(parked, "asks") == "Heard."
    assert kinds(parked, "asks") == ["approval_required", "branch_completed"]
    assert numbers(parked) == list(range(len(numbers(parked))))
    assert runtime.verify("s-1").verified


def test_another_process_answers_and_runs_what_was_parked(runtime, workers, parked, reopened):
    (request,) = reopened.approvals("s-1")
    others = InlineWorkers(reopened)
    resolve(reopened, request.request_id)
    others.drain()
    assert parked.status() == "completed"
    assert ledger() == {"put a": 1, "guarded g": 1}


@pytest.mark.parametrize("expires_after", ["24h"])
def test_an_answer_behind_the_expiry_is_refused_and_the_sweep_denies_by_default(runtime, workers, parked):
    (request,) = runtime.approvals("s-1")
    with pytest.raises(ApprovalRefused, match="expired") as refused:
        resolve(runtime, request.request_id)
    assert refused.value.code == "expired"
    assert sweep(runtime.parts).expired == 1
    workers.drain()
    assert parked.status() == "completed"
    assert ledger() == {"put a": 1}, "what nobody allowed in time does not run"
    (told,) = receipts(parked, "approval_resolved")
    assert (told["status"], told["principal"]) == ("denied", "kernel:expiry")
    assert [row.status for row in rows_of(runtime, "SELECT status FROM approval")] == ["expired"]
    assert runtime.verify("s-1").verified
