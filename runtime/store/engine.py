"""Opens the SQL database: SQLite with one writer at a time, PostgreSQL as it is.

SQLite's settings follow what was measured to lose nothing: no implicit BEGIN, ``BEGIN IMMEDIATE`` for
writing, write-ahead log, full synchronisation, a busy timeout.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError, SQLAlchemyError

from runtime.errors import ConfigurationError, StoreUnavailable
from runtime.store.clock import Clock
from runtime.store.crashpoints import CrashPoints, Transition

BUSY_TIMEOUT_MS = 10_000


class Database:
    """The engine of this process, and its two ways of use: `reading` and `writing`.

    One engine serves one process: after a fork the inherited connections are dropped without being
    closed, since they belong to the parent.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, pool_size: int = 10) -> None:
        self.url = _parse(url)
        self.clock = clock or Clock()
        self.dialect = self.url.get_backend_name()
        self.engine = _create(self.url, pool_size)
        self.crash = CrashPoints.from_environment()
        self._pid = os.getpid()

    @property
    def now_sql(self) -> str:
        """SQL of the current instant, in milliseconds since the epoch."""
        return self.clock.sql(self.dialect)

    def _own(self) -> Engine:
        if self._pid != os.getpid():
            self.engine.dispose(close=False)
            self._pid = os.getpid()
        return self.engine

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for plain reads, each its own snapshot.

        Raises:
            StoreUnavailable: If the database cannot be reached.
        """
        with self._guarded(), self._own().connect() as connection:
            yield connection

    @contextmanager
    def writing(self, transition: Transition = Transition.OTHER) -> Iterator[Connection]:
        """One short transaction; it commits when the block ends and rolls back on an exception.

        Args:
            transition: What it does, as tests name it that kill the process around its commit.

        Raises:
            StoreUnavailable: If the database cannot be reached.
        """
        begin, before, after = transition.points
        self.crash.reach(begin)
        with self._guarded(), self._own().connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    raw: Any = connection.connection.driver_connection
                    if raw.in_transaction:  # SQLite may have rolled back by itself, as when the disk is full
                        connection.exec_driver_sql("ROLLBACK")
                    raise
                self.crash.reach(before)
                connection.exec_driver_sql("COMMIT")
            else:
                with self._transactional(connection).begin():
                    yield connection
                    self.crash.reach(before)
        self.crash.reach(after)

    @contextmanager
    def connecting(self) -> Iterator[Connection]:
        """A bare connection, for migrations, which manage their own transaction.

        Raises:
            StoreUnavailable: If the database cannot be reached.
        """
        with self._guarded(), self._own().connect() as connection:
            yield self._transactional(connection)

    def _transactional(self, connection: Connection) -> Connection:
        """A connection on which a transaction can be begun; SQLite's is begun by hand."""
        if self.dialect == "sqlite":
            return connection
        return connection.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if error.connection_invalidated or _is_unreachable(error):
                raise StoreUnavailable(
                    f"the database {self.url.render_as_string(hide_password=True)} cannot be used: "
                    f"{_first_line(error)}; check AGENT_RUNTIME_DATABASE_URL and that the server runs, "
                    "and run 'agent-runtime db upgrade' if a table is missing"
                ) from error
            raise

    def close(self) -> None:
        """Close the pool."""
        self.engine.dispose(close=self._pid == os.getpid())


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        raise ConfigurationError(
            "AGENT_RUNTIME_DATABASE_URL is not a database URL; "
            "give sqlite:///file.db or postgresql://user@host/name"
        ) from None
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ConfigurationError(
            f"AGENT_RUNTIME_DATABASE_URL uses {parsed.drivername!r}; sqlite and postgresql are supported"
        )
    return parsed


def _create(url: URL, pool_size: int) -> Engine:
    """Make the engine; its errors say which statement failed, never with what contents."""
    if url.get_backend_name() != "sqlite":
        # Most work is one statement that commits by itself; `writing` asks for a transaction.
        engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_use_lifo=True,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            hide_parameters=True,
        )
        _ping_after_idling(engine)
        return engine
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("an in-memory SQLite database cannot be shared by processes; name a file")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            f"the folder of the SQLite file {url.database} cannot be made ({error.strerror}); "
            "point AGENT_RUNTIME_DATABASE_URL to a folder that can be written"
        ) from error
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # A damaged byte must be read, so that verification can name it.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


IDLE_SECONDS = 5.0
"""How long a connection is trusted unseen; a server that restarted costs one statement at most."""


def _ping_after_idling(engine: Engine) -> None:
    """Try a connection before use if nobody used it for a while, instead of every time."""

    @event.listens_for(engine, "checkin")
    def _rested(_connection: Any, record: Any) -> None:
        record.info["rested_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _try(connection: Any, record: Any, _proxy: Any) -> None:
        rested_at = record.info.get("rested_at")
        if rested_at is None or time.monotonic() - rested_at < IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error


_SQLSTATES = (
    "08",  # the connection failed
    "25006",  # the server takes no writes: a standby, or a read-only session
    "28",  # the role may not log in
    "3D000",  # there is no such database
    "42P01",  # there is no such table: it was not migrated
    "53",  # disk, memory or connections are used up
    "57P",  # the server shuts down, starts, or ended the session
    "58",  # the server's own input or output failed
    "XX001",  # data is damaged
    "XX002",  # an index is damaged
)
"""Beginnings of PostgreSQL's codes (its manual, appendix A) that blame the database, not a statement."""

_SQLITE_CODES = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""Primary result codes of SQLite (sqlite.org/rescode.html) that blame the file, not a statement."""


def _is_unreachable(error: DBAPIError) -> bool:
    """Whether the database is at fault, not the statement, by the code that its driver gives."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0)  # absent where Python itself refused
        # The lowest byte of an extended code is its primary one; a missing table has no code of its own.
        return code & 0xFF in _SQLITE_CODES or str(cause).startswith("no such table")
    state = getattr(cause, "sqlstate", None)
    if state is None:  # no server answered at all
        return isinstance(error, OperationalError)
    return str(state).startswith(_SQLSTATES)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().split("\n")[0]
