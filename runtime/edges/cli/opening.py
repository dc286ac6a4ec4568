"""What commands open: the database alone, the workspace file with its tools, or the whole runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime import AgentRuntime
    from runtime.core.model import SessionStatus
    from runtime.settings import Settings
    from runtime.store.engine import Database
    from runtime.store.sessions import StoredSession


@contextmanager
def open_database(settings: Settings | None = None) -> Iterator[Database]:
    """Open the database as it is, for commands that need nothing else.

    Raises:
        StoreUnavailable: If it does not exist, cannot be reached or lacks the current schema.
    """
    from runtime.settings import Settings
    from runtime.store.engine import Database
    from runtime.store.migrate import ensure_schema

    settings = settings or Settings.load()
    refuse_missing_file(settings)
    database = Database(settings.database_url)
    try:
        ensure_schema(database)
        yield database
    finally:
        database.close()


def refuse_missing_file(settings: Settings) -> None:
    """Refuse an SQLite file that does not exist, rather than make an empty one in passing.

    Raises:
        StoreUnavailable: If there is no such file.
    """
    from sqlalchemy.engine import make_url

    from runtime.errors import StoreUnavailable

    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        raise StoreUnavailable(
            f"there is no database {url.database}; set AGENT_RUNTIME_DATABASE_URL or AGENT_RUNTIME_STATE_DIR "
            "to where it is, or make it with 'agent-runtime db upgrade'"
        )


def find(database: Database, session_id: str) -> tuple[StoredSession, SessionStatus]:
    """Read a session and its status.

    Raises:
        SessionNotFound: If there is no such session.
    """
    from runtime.errors import SessionNotFound
    from runtime.store.sessions import read_status

    found = read_status(database, session_id)
    if found is None:
        shown = session_id if len(session_id) <= 60 else session_id[:60] + "…"
        raise SessionNotFound(f"no session {shown!r}; see 'agent-runtime sessions list'")
    return found


@contextmanager
def open_runtime(workspace: Path | None = None, *, make_database: bool = False) -> Iterator[AgentRuntime]:
    """Open the whole runtime, for commands that change something.

    Args:
        workspace: Path of the workspace file; default: the setting.
        make_database: Whether an SQLite file that does not exist is made.

    Raises:
        ConfigurationError: If a setting, the workspace file or a tool is wrong.
        StoreUnavailable: If the database cannot be reached or lacks the current schema.
    """
    from runtime.settings import Settings

    settings = Settings.load(workspace=workspace)
    if not make_database:
        refuse_missing_file(settings)

    from runtime import AgentRuntime

    with AgentRuntime.open(settings=settings) as runtime:
        yield runtime
