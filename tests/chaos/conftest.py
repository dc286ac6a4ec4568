"""A deployment of one's own for each test, since each test breaks it."""

import pytest

from runtime.agent_runtime import AgentRuntime
from runtime.edges.embedded import EmbeddedValkey
from runtime.store.engine import Database
from runtime.store.migrate import upgrade
from tests.harness.stack import running

ALWAYS_ON_BOTH = ("start.", "record.", "advance.", "resolve.", "doubt.")
"""Commits whose boundaries are killed at on PostgreSQL too in every run; the others on SQLite."""


REPEATED_ELSEWHERE = ("test_big_graph.py", "test_schedules.py", "test_processes_are_replaced.py")
"""Long runs of real processes whose claims shorter tests of every run make too."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "chaos" not in item.path.parts:
            continue
        item.add_marker(pytest.mark.chaos)
        given = item.callspec.params if hasattr(item, "callspec") else {}
        point = given.get("point", "")
        if given.get("migrated_url") == "postgresql" and point and not point.startswith(ALWAYS_ON_BOTH):
            item.add_marker(pytest.mark.exhaustive)
        if item.path.name in REPEATED_ELSEWHERE:
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture
def own_valkey(tmp_path):
    with EmbeddedValkey(tmp_path / "state") as server:
        yield server


@pytest.fixture
def attached(request, folder, tmp_path, own_valkey):
    """A runtime as an application holds it, with a Valkey of its own.

    It is on SQLite, unless a test asks for another: ``parametrize("attached", [...], indirect=True)``.
    """
    url = f"sqlite:///{tmp_path / 'runtime.db'}"
    if getattr(request, "param", "sqlite") == "postgresql":
        url = request.getfixturevalue("postgres_url")
        database = Database(url)
        upgrade(database)
        database.close()
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=url, redis_url=own_valkey.url, state_dir=tmp_path / "state"
    ) as runtime:
        yield runtime


@pytest.fixture
def stack(attached):
    """Runs the worker processes of the attached runtime; takes the options of `running`."""
    settings = attached.settings

    def run(**options):
        return running(
            settings.workspace, settings.database_url, settings.redis_url, settings.state_dir, **options
        )

    return run
