"""A host-driven call whose end cannot be recorded: its caller still learns that it ran."""

import logging
import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from runtime import ToolContext, tool
from runtime.agent_runtime import AgentRuntime
from runtime.engine.host_crashes import sweep_crashed
from runtime.errors import StoreUnavailable
from runtime.store import engine
from tests.harness.ledger_tools import Entry
from tests.harness.sessions import context


class SqliteHeld:
    """Another process of the application holds the writer's lock and does not let go of it."""

    def __init__(self, url):
        self._other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)

    def cut(self):
        self._other.execute("BEGIN IMMEDIATE")

    def mend(self):
        if self._other.in_transaction:
            self._other.execute("ROLLBACK")


class PostgresGone:
    """The server ends every connection and takes no new ones."""

    def __init__(self, url, server):
        self._name, self._server = make_url(url).database, server

    def cut(self):
        self._server.psql(f"ALTER DATABASE {self._name} WITH ALLOW_CONNECTIONS false")
        self._server.psql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'"
        )

    def mend(self):
        self._server.psql(f"ALTER DATABASE {self._name} WITH ALLOW_CONNECTIONS true")


@pytest.fixture
def outage(migrated_url, request, monkeypatch):
    """Makes the database unusable, each kind in its own way."""
    if migrated_url.startswith("sqlite"):
        monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 50)
        found = SqliteHeld(migrated_url)
    else:
        found = PostgresGone(migrated_url, request.getfixturevalue("postgres_server"))
    yield found
    found.mend()


@pytest.fixture
def application(folder, migrated_url, valkey, outage):
    """A runtime with tools in whose middle the database goes away."""

    @tool("outage:pay", effect="once")
    def pay(input: Entry, ctx: ToolContext) -> dict[str, str]:
        """Pay, whereupon the database goes away."""
        outage.cut()
        return {"paid": input.name}

    path = folder / "workspace.yaml"
    path.write_text(path.read_text().replace("allow_tools: [", 'allow_tools: ["outage:pay", "outage:fail", '))
    with AgentRuntime.open(
        path, database_url=migrated_url, redis_url=valkey.url, tools=[pay, _fail(outage)]
    ) as found:
        yield found


def _fail(outage):
    @tool("outage:fail", effect="read")
    def fail(input: Entry, ctx: ToolContext) -> dict[str, str]:
        """Fail, whereupon the database goes away."""
        outage.cut()
        raise RuntimeError(f"no {input.name}")

    return fail


def bookkeeping():
    return context(metadata={"agent_intent": "bookkeeping"})


def lost_and_swept(application):
    """What the sweep makes of the step once its lease has run out."""
    with application.parts.database.writing() as connection:
        connection.execute(text("UPDATE step SET lease_until = 1 WHERE status = 'running'"))
    assert sweep_crashed(application.parts) == 1
    with application.parts.database.reading() as connection:
        return connection.execute(text("SELECT id, status FROM step")).one()


def test_the_caller_learns_what_the_call_returned_and_that_it_is_not_recorded(application, outage, caplog):
    with caplog.at_level(logging.WARNING, logger="runtime.engine.host"):
        output = application.execute_tool("outage:pay", {"name": "rent"}, bookkeeping())
    assert (output.success, output.data) == (True, {"paid": "rent"})
    assert output.metadata["recorded"] is False
    assert output.metadata["receipts"] == []
    warning = output.metadata["warning"]
    assert "could not be recorded: the database" in warning
    assert "in doubt" in warning
    assert warning in caplog.text
    outage.mend()
    step = lost_and_swept(application)
    assert (step.id, step.status) == (output.metadata["step_id"], "in_doubt")
    finish = [event.body for event in application.session("s-1").events(timeout=0)][-1]
    assert finish["error"]["details"] == {"reason": "in_doubt", "cause": "worker_lost"}
    assert application.verify("s-1").verified


def test_the_caller_learns_how_the_call_failed_as_well(application, outage):
    output = application.execute_tool("outage:fail", {"name": "rent"}, bookkeeping())
    assert "no rent" in output.error.message
    assert output.metadata["recorded"] is False
    outage.mend()
    assert lost_and_swept(application).status == "failed"


def test_a_call_whose_start_cannot_be_written_does_not_run(application, outage):
    outage.cut()
    with pytest.raises(StoreUnavailable):
        application.execute_tool("outage:pay", {"name": "rent"}, bookkeeping())
    outage.mend()
    with application.parts.database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM step")).scalar_one() == 0


def test_a_recorded_call_names_its_receipts(application, outage, monkeypatch):
    monkeypatch.setattr(outage, "cut", lambda: None)
    output = application.execute_tool("outage:pay", {"name": "rent"}, bookkeeping())
    assert output.metadata["recorded"] is True
    assert "warning" not in output.metadata
    with application.parts.database.reading() as connection:
        finished = connection.execute(
            text("SELECT hash FROM evidence WHERE kind = 'tool_call_finished'")
        ).scalar_one()
    assert output.metadata["receipts"] == [finished]


def test_a_call_that_outlived_its_lease_is_told_so(application, outage, monkeypatch):
    monkeypatch.setattr(outage, "cut", lambda: lost_and_swept(application))
    output = application.execute_tool("outage:pay", {"name": "rent"}, bookkeeping())
    assert output.data == {"paid": "rent"}
    assert output.metadata["recorded"] is False
    assert "its lease had run out" in output.metadata["warning"]
