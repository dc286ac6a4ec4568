"""What a database role of tool workers may do in PostgreSQL: run calls and ask for approval, never answer.

Tool workers run other people's code. Under such a role they read everything, write the journal and evidence
of the steps that they run, and ask questions; they cannot write a vote, an answer, a standing grant or a use
of one, a seal or a rule of who may answer. A request that they make is open, whatever they say: they cannot
write its ``status``.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from runtime.core.text import check_name
from runtime.errors import ConfigurationError
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.tables import metadata

_ANSWERED = frozenset({"status", "resolved_at", "resolved_by", "reason", "consumed_by", "escalated_at"})
"""What of a request is said by who answers it, or by time."""

_WRITES = {
    "session": "UPDATE (control_n, control_head, continuations, ended_status, ended_at, end_error)",
    "node": "UPDATE",
    "edge": "UPDATE",
    "step": "INSERT, UPDATE",
    "message": "INSERT",
    "continuation": "INSERT, UPDATE",
    "evidence": "INSERT",
    "blob": "INSERT",
    "notification": "INSERT",
    "workspace_version": "INSERT",
}
"""What the steps of a tool worker write, besides questions; what is not named is read only."""

_SEQUENCES = ("continuation_id_seq", "evidence_position_seq")


def tool_worker_statements(role: str) -> tuple[str, ...]:
    """The statements that make an existing role one of tool workers; harmless to repeat.

    Args:
        role: Name of the role.

    Raises:
        InvalidInput: If nothing can have this name.
    """
    check_name("role", role, most=63)
    quoted = '"' + role.replace('"', '""') + '"'
    return tuple(_statements(quoted))


def _statements(role: str) -> Iterator[str]:
    for table in sorted(metadata.tables):
        yield f"REVOKE ALL ON {table} FROM {role}, PUBLIC"
        yield f"GRANT SELECT ON {table} TO {role}"
        if table in _WRITES:
            yield f"GRANT {_WRITES[table]} ON {table} TO {role}"
    yield f"GRANT SELECT ON alembic_version TO {role}"
    asked = ", ".join(each.name for each in metadata.tables["approval"].columns if each.name not in _ANSWERED)
    yield f"GRANT INSERT ({asked}), UPDATE (consumed_by) ON approval TO {role}"
    for sequence in _SEQUENCES:
        yield f"GRANT USAGE ON SEQUENCE {sequence} TO {role}"


def apply_tool_worker(database: Database, role: str) -> tuple[str, ...]:
    """Execute `tool_worker_statements` in one transaction, as the owner of the tables.

    Returns:
        The statements.

    Raises:
        ConfigurationError: If the database has no roles, or refuses.
        InvalidInput: If nothing can have this name.
    """
    statements = tool_worker_statements(role)
    if database.dialect != "postgresql":
        raise ConfigurationError(
            f"a {database.dialect} database has no roles; point AGENT_RUNTIME_DATABASE_URL to PostgreSQL"
        )
    try:
        with database.writing(Transition.OTHER) as connection:
            for statement in statements:
                connection.execute(text(statement.replace(":", r"\:")))
    except DBAPIError as error:
        said = str(error.orig).strip().split("\n")[0]
        raise ConfigurationError(
            f"the role {role!r} cannot be given its rights: {said}; make it with CREATE ROLE, and apply this "
            "as the owner of the tables"
        ) from error
    return statements
