"""Rules of approvals: quorum, escalation, edited calls, standing grants, notifications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ESCALATE = "status = 'pending' AND escalate_at IS NOT NULL"
_STANDING = "status = 'pending' AND standing"
_ACTIVE = "revoked_at IS NULL AND used < uses"
_DUE = "due_at IS NOT NULL"


def upgrade() -> None:
    """Apply this version."""
    with op.batch_alter_table("approval", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rule", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("standing", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("escalate_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("escalated_at", sa.BigInteger(), nullable=True))
        batch_op.alter_column("status", existing_type=sa.String(), server_default="pending")
    _index("ix_approval_escalate", "approval", ["escalate_at"], _ESCALATE)
    _index("ix_approval_standing", "approval", ["requested_at"], _STANDING)
    with op.batch_alter_table("approval_vote", schema=None) as batch_op:
        batch_op.add_column(sa.Column("answer", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("digest", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("content", sa.Text(), nullable=True))
    _standing_grants()
    op.create_table(
        "notification",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("ix_notification_due", "notification", ["due_at"], _DUE)


def _standing_grants() -> None:
    op.create_table(
        "standing_grant",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tools", sa.Text(), nullable=False),
        sa.Column("condition", sa.Text(), nullable=True),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("granted_by", sa.String(), nullable=False),
        sa.Column("established_by", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("granted_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_by", sa.String(), nullable=True),
        sa.CheckConstraint("used <= uses"),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("ix_standing_grant_active", "standing_grant", ["expires_at"], _ACTIVE)
    op.create_table(
        "standing_grant_use",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("grant_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "grant_id"),
    )
    op.create_index("ix_standing_grant_use_grant", "standing_grant_use", ["grant_id", "at"])


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    """A partial index."""
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def downgrade() -> None:
    """Take this version back."""
    for table in ("notification", "standing_grant_use", "standing_grant"):
        op.drop_table(table)
    with op.batch_alter_table("approval_vote", schema=None) as batch_op:
        for column in ("content", "digest", "answer"):
            batch_op.drop_column(column)
    for name in ("ix_approval_standing", "ix_approval_escalate"):
        op.drop_index(name, table_name="approval")
    with op.batch_alter_table("approval", schema=None) as batch_op:
        batch_op.alter_column("status", existing_type=sa.String(), server_default=None)
        for column in ("escalated_at", "escalate_at", "standing", "rule"):
            batch_op.drop_column(column)
