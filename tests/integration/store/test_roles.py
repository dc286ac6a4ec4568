"""A tool worker's database role runs calls and asks for approval, and cannot answer."""

import itertools

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.engine.sweep import sweep
from runtime.errors import ConfigurationError
from runtime.live.hints import StepHint
from runtime.store.engine import Database
from runtime.store.migrate import upgrade
from runtime.store.roles import apply_tool_worker, tool_worker_statements
from tests.harness.approving import ANN, CAT, say, write_approvals
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger

_roles = itertools.count()


@pytest.fixture
def restricted(postgres_url):
    """Two ways into one migrated database: the owner's, and that of a role of tool workers."""
    owner = Database(postgres_url)
    upgrade(owner)
    role = f"tools-{next(_roles)}"
    with owner.writing() as connection:
        connection.execute(text(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'secret'"))
    apply_tool_worker(owner, role)
    apply_tool_worker(owner, role)
    owner.close()
    url = make_url(postgres_url)
    return postgres_url, url.set(username=role, password="secret").render_as_string(hide_password=False)


@pytest.fixture
def deployment(folder, restricted):
    """The owner's runtime, a tool worker's, and a session whose first turn was made."""
    rule = {"tools": ["ledger:guarded"], "separation_of_duty": True}
    hook = {"url": "http://127.0.0.1:9/hook", "secret_env": "HOOK_SECRET"}
    path = write_approvals(folder, rules=[rule], webhook=hook)
    with (
        AgentRuntime.open(path, database_url=restricted[0], answers_established_by="http-auth") as owner,
        AgentRuntime.open(path, database_url=restricted[1], answers_established_by="http-auth") as worker,
    ):
        yield owner, worker


def start(owner, *names):
    workers = InlineWorkers(owner)
    flow = start_governed_agent_session(
        runtime=owner,
        execute_turn_input=turn_input(*names, "/say Done."),
        ctx=context(principal=CAT),
    )
    return workers, flow


def drain(workers, worker):
    """Deliver all messages: tool calls to the tool worker, the rest to the owner's."""
    tools = worker.executor()
    sent = InlineWorkers(worker).inbox
    while workers.inbox.hints:
        hint = workers.inbox.hints[0]
        if isinstance(hint, StepHint) and hint.kind == "tool_call":
            workers.inbox.hints.pop(0)
            tools.run_step(hint.step_id, ("tools",))
            workers.inbox.hints.extend(sent.hints)
            sent.hints.clear()
        else:
            workers.next()


def test_a_tool_worker_of_that_role_runs_calls_asks_and_runs_what_others_approved(deployment):
    owner, worker = deployment
    calls = (call(f"ledger:{tool}", name) for tool, name in (("put", "a"), ("guarded", "b"), ("read", "c")))
    workers, flow = start(owner, *calls)
    drain(workers, worker)
    (request,) = owner.approvals("s-1")
    assert ledger() == {"put a": 1}
    with pytest.raises(DBAPIError, match="permission denied"):
        say(worker, request.request_id, ANN)
    assert owner.approvals("s-1") == [request]
    say(owner, request.request_id, ANN)
    drain(workers, worker)
    assert flow.status() == "completed"
    assert ledger() == {"put a": 1, "guarded b": 1, "read c": 1}
    assert owner.verify("s-1", principal=CAT).problem is None


def test_where_the_tool_worker_cannot_use_a_standing_grant_the_sweep_does(deployment):
    owner, worker = deployment
    owner.grant_standing("ledger:guarded", uses=1, expires_in="1h", granted_by=ANN)
    workers, flow = start(owner, call("ledger:guarded", "b"))
    drain(workers, worker)
    assert flow.status() == "waiting_approval"
    sweep(owner.parts)
    drain(workers, worker)
    assert (flow.status(), ledger()) == ("completed", {"guarded b": 1})
    assert owner.verify("s-1", principal=CAT).problem is None


@pytest.mark.parametrize(
    "forged",
    [
        "INSERT INTO approval_vote (approval_id, principal, established_by, approved, at) "
        "VALUES ('{id}', 'a', 'http-auth', true, 0)",
        "UPDATE approval_vote SET approved = true",
        "DELETE FROM approval_vote",
        "UPDATE approval SET status = 'approved' WHERE id = '{id}'",
        "UPDATE approval SET rule = NULL",
        "UPDATE approval SET expires_at = 0",
        "DELETE FROM approval",
        "INSERT INTO approval SELECT * FROM approval",
        "INSERT INTO approval (id, kind, session_id, node_uid, node_id, step_id, tool_name, digest, input, "
        "policy_decisions, message, requested_at, expires_at, status) "
        "VALUES ('x', 'call', 's', 'n', 'n', 's', 't', 'd', '', '', '', 0, 0, 'approved')",
        "UPDATE standing_grant SET uses = 9",
        "INSERT INTO standing_grant_use VALUES ('r', 'g', 's', 0)",
        "DELETE FROM evidence",
        "UPDATE evidence SET body = ''",
        "UPDATE blob SET content = ''",
        "DELETE FROM step",
        "UPDATE session SET principal = 'mallory'",
    ],
)
def test_the_role_cannot_answer_nor_change_what_was_written(deployment, restricted, forged):
    owner, worker = deployment
    workers, _ = start(owner, call("ledger:guarded", "b"))
    drain(workers, worker)
    (request,) = owner.approvals("s-1")
    url = make_url(restricted[1]).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(forged.format(id=request.request_id))
    assert owner.verify("s-1", principal=CAT).problem is None


def test_a_request_that_the_role_makes_is_open_whatever_it_says(restricted):
    url = make_url(restricted[1]).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO approval (id, kind, session_id, node_uid, node_id, step_id, tool_name, digest, "
            "input, policy_decisions, message, requested_at, expires_at) "
            "VALUES ('x', 'call', 's', 'n', 'n', 's', 't', 'd', '', '', '', 0, 0)"
        )
        assert connection.execute("SELECT status, resolved_by FROM approval").fetchone() == ("pending", None)


def test_sqlite_has_no_roles(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(ConfigurationError, match="a sqlite database has no roles"):
        apply_tool_worker(database, "tools")
    database.close()


def test_a_role_that_does_not_exist_is_refused_with_the_fix(postgres_url):
    database = Database(postgres_url)
    upgrade(database)
    with pytest.raises(ConfigurationError, match="CREATE ROLE"):
        apply_tool_worker(database, "nobody-of-that-name")
    database.close()


def test_a_name_is_quoted():
    assert all('"a""b; DROP"' in each for each in tool_worker_statements('a"b; DROP'))
