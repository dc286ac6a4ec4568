"""The system of record: one SQLModel class per table.

All instants are milliseconds since the epoch in UTC, read from the database's clock. JSON is kept as
canonical text, so that any model text (NUL, lone surrogates) survives in any database. High-traffic
tables carry no foreign keys, so that branches of a session never meet on a common row.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    FetchedValue,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel


def _big(*, nullable: bool = True, default: int | None = None) -> Column[int]:
    server = None if default is None else text(str(default))
    return Column(BigInteger, nullable=nullable, server_default=server)


class SessionRow(SQLModel, table=True):
    """One agent session: a graph of nodes under one id."""

    __tablename__ = "session"

    id: str = Field(primary_key=True)
    kind: str
    run_id: str
    task_id: str
    principal: str | None = None
    context: str = Field(sa_type=Text)
    definition: str | None = Field(default=None, sa_type=Text)
    definition_digest: str
    forked_from: str | None = None
    created_at: int = Field(sa_column=_big(nullable=False))
    cancelled_at: int | None = Field(default=None, sa_column=_big())
    paused_at: int | None = Field(default=None, sa_column=_big())
    ended_status: str | None = None
    ended_at: int | None = Field(default=None, sa_column=_big())
    end_error: str | None = Field(default=None, sa_type=Text)
    continuations: int = Field(default=0, sa_column=_big(nullable=False, default=0))
    control_n: int = Field(default=0, sa_column=_big(nullable=False, default=0))
    control_head: str | None = None

    __table_args__ = (Index("ix_session_created", "created_at"),)


MOVING_NODES = "status IN ('ready', 'running', 'scheduled', 'waiting_approval', 'suspended')"
"""Nodes that keep their session from ending: the condition of `ix_node_moving`, word for word."""


class NodeRow(SQLModel, table=True):
    """One node of a session's graph."""

    __tablename__ = "node"

    uid: str = Field(primary_key=True)
    session_id: str
    node_id: str
    position: int
    mode: str
    definition: str = Field(sa_type=Text)
    status: str
    reason: str | None = None
    plan: str = Field(default="{}", sa_type=Text)
    rules: str | None = Field(default=None, sa_type=Text)
    item: str | None = Field(default=None, sa_type=Text)
    handled: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    wake_at: int | None = Field(default=None, sa_column=_big())
    deadline_at: int | None = Field(default=None, sa_column=_big())
    dependencies: int = 0
    max_turns: int
    turn_budget: int
    turns: int = 0
    tool_calls: int = 0
    inbox: int = 0
    priority: int = 0
    head: str | None = None
    result: str | None = Field(default=None, sa_type=Text)
    error: str | None = Field(default=None, sa_type=Text)

    __table_args__ = (
        UniqueConstraint("session_id", "node_id"),
        Index(
            "ix_node_deadline",
            "deadline_at",
            sqlite_where=text("deadline_at IS NOT NULL"),
            postgresql_where=text("deadline_at IS NOT NULL"),
        ),
        Index(
            "ix_node_moving",
            "session_id",
            sqlite_where=text(MOVING_NODES),
            postgresql_where=text(MOVING_NODES),
        ),
    )


class EdgeRow(SQLModel, table=True):
    """One dependency between two nodes."""

    __tablename__ = "edge"

    node_uid: str = Field(primary_key=True)
    depends_on_uid: str = Field(primary_key=True)
    session_id: str
    satisfied: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    on_end: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))
    sole: bool = Field(default=False, sa_column=Column(Boolean, nullable=False))

    __table_args__ = (Index("ix_edge_depends_on", "depends_on_uid"),)


OPEN_STEPS = "status IN ('pending', 'ready', 'waiting_approval', 'in_doubt', 'quarantined')"
"""Steps that somebody or something still has to move: the condition of `ix_step_open`, word for word."""


UNPROPAGATED = {"sqlite": "propagated = 0", "postgresql": "NOT propagated"}
"""Steps from whose end nothing was made to follow: the condition of two indexes, word for word."""


class StepRow(SQLModel, table=True):
    """The journal: one turn or tool call. The state of a row is the outbox."""

    __tablename__ = "step"

    id: str = Field(primary_key=True)
    session_id: str
    node_uid: str
    node_id: str
    kind: str
    turn_index: int
    call_index: int
    tool_name: str
    queue: str
    driver: str
    status: str
    reason: str | None = None
    due_at: int = Field(sa_column=_big(nullable=False))
    publish_at: int | None = Field(default=None, sa_column=_big())
    publishes: int = 0
    lease_until: int | None = Field(default=None, sa_column=_big())
    fence: int = 0
    attempts: int = 0
    crashes: int = 0
    cites: str = Field(default="[]", sa_type=Text)
    head: str | None = None
    input: str | None = Field(default=None, sa_type=Text)
    input_hash: str | None = None
    call_id: str | None = None
    calls_before: int = 0
    messages_before: int = 0
    transcript_digest: str = ""
    transcript_bytes: int = 0
    siblings: int = 1
    inbox: int = 0
    intent: str | None = None
    approval_id: str | None = None
    output: str | None = Field(default=None, sa_type=Text)
    error: str | None = Field(default=None, sa_type=Text)
    usage: str | None = Field(default=None, sa_type=Text)
    propagated: bool = Field(default=True, sa_column=Column(Boolean, nullable=False))
    worker: str | None = None
    started_at: int | None = Field(default=None, sa_column=_big())  # of the first attempt
    finished_at: int | None = Field(default=None, sa_column=_big())

    __table_args__ = (
        Index("ix_step_node", "node_uid", "turn_index", "call_index", "id"),
        Index("ix_step_session", "session_id"),
        Index(
            "ix_step_open",
            "session_id",
            sqlite_where=text(OPEN_STEPS),
            postgresql_where=text(OPEN_STEPS),
        ),
        Index(
            "ix_step_publish",
            "publish_at",
            sqlite_where=text("status = 'ready'"),
            postgresql_where=text("status = 'ready'"),
        ),
        Index(
            "ix_step_lease",
            "lease_until",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        Index(
            "ix_step_unpropagated",
            "publish_at",
            "session_id",
            sqlite_where=text(UNPROPAGATED["sqlite"]),
            postgresql_where=text(UNPROPAGATED["postgresql"]),
        ),
        Index(
            "ix_step_followed",
            "session_id",
            sqlite_where=text(UNPROPAGATED["sqlite"]),
            postgresql_where=text(UNPROPAGATED["postgresql"]),
        ),
    )


class MessageRow(SQLModel, table=True):
    """The transcript of a node, append-only; numbers are fixed by the turn that caused them."""

    __tablename__ = "message"

    node_uid: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    role: str
    content: str = Field(sa_type=Text)


class SignalRow(SQLModel, table=True):
    """The inbox of a node: messages handed to it that its next turn takes in."""

    __tablename__ = "signal"

    node_uid: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    idempotency_key: str | None = None
    role: str
    content: str = Field(sa_type=Text)
    at: int = Field(sa_column=_big(nullable=False))

    __table_args__ = (Index("ix_signal_key", "node_uid", "idempotency_key"),)


class ContinuationRow(SQLModel, table=True):
    """Why a session moved on."""

    __tablename__ = "continuation"

    id: int | None = Field(
        default=None,
        sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    )
    session_id: str
    number: int | None = Field(default=None, sa_column=_big())
    kind: str
    node_id: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    at: int = Field(sa_column=_big(nullable=False))

    __table_args__ = (
        UniqueConstraint("session_id", "number"),
        Index(
            "ix_continuation_unnumbered",
            "session_id",
            "id",
            sqlite_where=text("number IS NULL"),
            postgresql_where=text("number IS NULL"),
        ),
    )


class ApprovalRow(SQLModel, table=True):
    """A question to people about one exact call."""

    __tablename__ = "approval"

    id: str = Field(primary_key=True)
    kind: str
    session_id: str
    node_uid: str
    node_id: str
    step_id: str
    tool_name: str
    digest: str
    input: str = Field(sa_type=Text)
    policy_decisions: str = Field(sa_type=Text)
    message: str = Field(sa_type=Text)
    principal: str | None = None
    # Who may only ask need not say that the question is open, and may say nothing else.
    status: str = Field(default="pending", sa_column=Column(String, nullable=False, server_default="pending"))
    requested_at: int = Field(sa_column=_big(nullable=False))
    expires_at: int = Field(sa_column=_big(nullable=False))
    resolved_at: int | None = Field(default=None, sa_column=_big())
    resolved_by: str | None = None
    reason: str | None = Field(default=None, sa_type=Text)
    consumed_by: str | None = None
    rule: str | None = Field(default=None, sa_type=Text)
    standing: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false"))
    )
    escalate_at: int | None = Field(default=None, sa_column=_big())
    escalated_at: int | None = Field(default=None, sa_column=_big())

    __table_args__ = (
        Index("ix_approval_session", "session_id"),
        Index(
            "ix_approval_escalate",
            "escalate_at",
            sqlite_where=text("status = 'pending' AND escalate_at IS NOT NULL"),
            postgresql_where=text("status = 'pending' AND escalate_at IS NOT NULL"),
        ),
        Index(
            "ix_approval_standing",
            "requested_at",
            sqlite_where=text("status = 'pending' AND standing"),
            postgresql_where=text("status = 'pending' AND standing"),
        ),
        Index(
            "ix_approval_pending",
            "expires_at",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
    )


class ApprovalVoteRow(SQLModel, table=True):
    """Who answered what, how identified, when and why."""

    __tablename__ = "approval_vote"

    approval_id: str = Field(primary_key=True)
    principal: str = Field(primary_key=True)
    established_by: str
    approved: bool
    reason: str | None = Field(default=None, sa_type=Text)
    at: int = Field(sa_column=_big(nullable=False))
    answer: str | None = None
    digest: str | None = None
    content: str | None = Field(default=None, sa_type=Text)


class StandingGrantRow(SQLModel, table=True):
    """An approval given beforehand, for calls that fit it."""

    __tablename__ = "standing_grant"

    id: str = Field(primary_key=True)
    tools: str = Field(sa_type=Text)
    condition: str | None = Field(default=None, sa_type=Text)
    uses: int
    used: int = 0
    granted_by: str
    established_by: str
    reason: str | None = Field(default=None, sa_type=Text)
    granted_at: int = Field(sa_column=_big(nullable=False))
    expires_at: int = Field(sa_column=_big(nullable=False))
    revoked_at: int | None = Field(default=None, sa_column=_big())
    revoked_by: str | None = None

    __table_args__ = (
        Index(
            "ix_standing_grant_active",
            "expires_at",
            sqlite_where=text("revoked_at IS NULL AND used < uses"),
            postgresql_where=text("revoked_at IS NULL AND used < uses"),
        ),
    )


class StandingGrantUseRow(SQLModel, table=True):
    """Which requests a standing grant answered, each for one of its uses."""

    __tablename__ = "standing_grant_use"

    request_id: str = Field(primary_key=True)
    grant_id: str = Field(primary_key=True)
    session_id: str
    at: int = Field(sa_column=_big(nullable=False))

    __table_args__ = (Index("ix_standing_grant_use_grant", "grant_id", "at"),)


class NotificationRow(SQLModel, table=True):
    """What the webhook is to be told; the id is the idempotency key."""

    __tablename__ = "notification"

    id: str = Field(primary_key=True)
    event: str
    body: str = Field(sa_type=Text)
    at: int = Field(sa_column=_big(nullable=False))
    due_at: int | None = Field(default=None, sa_column=_big())
    attempts: int = 0
    delivered_at: int | None = Field(default=None, sa_column=_big())
    error: str | None = Field(default=None, sa_type=Text)

    __table_args__ = (
        Index(
            "ix_notification_due",
            "due_at",
            sqlite_where=text("due_at IS NOT NULL"),
            postgresql_where=text("due_at IS NOT NULL"),
        ),
    )


EVERY_RECEIPT = "n >= 0"
"""The condition of `ix_evidence_written`, word for word. It holds for every receipt; it is there so that no
query of one session, which does not say so, is led through all evidence instead of through its own index."""


class EvidenceRow(SQLModel, table=True):
    """Receipts, hash-chained per (step, fence).

    They are read in the order of ``(transaction_id, position)``. PostgreSQL fills in the id of the writing
    transaction; in SQLite, whose writers are serialised, it is 0.
    """

    __tablename__ = "evidence"

    position: int | None = Field(
        default=None,
        sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    )
    transaction_id: int | None = Field(
        default=None, sa_column=Column(BigInteger, nullable=False, server_default=FetchedValue())
    )
    session_id: str
    step_id: str
    fence: int
    n: int
    kind: str
    body: str = Field(sa_type=Text)
    hash: str

    __table_args__ = (
        UniqueConstraint("session_id", "step_id", "fence", "n"),
        Index("ix_evidence_session", "session_id", "transaction_id", "position"),
        Index(
            "ix_evidence_written",
            "transaction_id",
            "position",
            sqlite_where=text(EVERY_RECEIPT),
            postgresql_where=text(EVERY_RECEIPT),
        ),
    )


class BlobRow(SQLModel, table=True):
    """Content-addressed canonical JSON that receipts cite."""

    __tablename__ = "blob"

    session_id: str = Field(primary_key=True)
    hash: str = Field(primary_key=True)
    content: str = Field(sa_type=Text)


class RemovedBlobRow(SQLModel, table=True):
    """A content that retention removed; a receipt of the session's control chain names it too."""

    __tablename__ = "removed_blob"

    session_id: str = Field(primary_key=True)
    hash: str = Field(primary_key=True)
    at: int = Field(sa_column=_big(nullable=False))
    reason: str


class SealRow(SQLModel, table=True):
    """A numbered seal, as it was signed, and up to which place of all evidence it and those before it reach.

    The place is not part of what is signed: it only says where the next seal goes on.
    """

    __tablename__ = "seal"

    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    body: str = Field(sa_type=Text)
    signature: str
    transaction_id: int = Field(sa_column=_big(nullable=False))
    position: int = Field(sa_column=_big(nullable=False))


class SealLeafRow(SQLModel, table=True):
    """One entry of a seal's tree: the last receipt that a chain had then."""

    __tablename__ = "seal_leaf"

    seal: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    leaf: int = Field(primary_key=True)
    session_id: str
    step_id: str
    fence: int
    n: int
    hash: str

    __table_args__ = (Index("ix_seal_leaf_session", "session_id", "seal", "leaf"),)


class ScheduleRow(SQLModel, table=True):
    """How far a schedule of the workspace file has come; what it started are sessions like any other."""

    __tablename__ = "schedule"

    id: str = Field(primary_key=True)
    timetable: str
    seen_at: int = Field(sa_column=_big(nullable=False))
    next_at: int = Field(sa_column=_big(nullable=False))
    pending_at: int | None = Field(default=None, sa_column=_big())
    session_id: str | None = None


class WorkspaceVersionRow(SQLModel, table=True):
    """Hashes of workspace files that workers may run under."""

    __tablename__ = "workspace_version"

    hash: str = Field(primary_key=True)
    path: str
    active: bool = Field(sa_column=Column(Boolean, nullable=False))
    activated_at: int = Field(sa_column=_big(nullable=False))


metadata = SQLModel.metadata
