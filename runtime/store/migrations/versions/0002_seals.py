"""Seals over evidence, and what retention removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this version."""
    op.create_index(
        "ix_evidence_written",
        "evidence",
        ["transaction_id", "position"],
        unique=False,
        sqlite_where=sa.text("n >= 0"),
        postgresql_where=sa.text("n >= 0"),
    )
    op.create_table(
        "removed_blob",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "hash"),
    )
    op.create_table(
        "seal",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("signature", sa.String(), nullable=False),
        sa.Column("transaction_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "seal_leaf",
        sa.Column("seal", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("leaf", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("step_id", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seal", "leaf"),
    )
    op.create_index("ix_seal_leaf_session", "seal_leaf", ["session_id", "seal", "leaf"], unique=False)


def downgrade() -> None:
    """Undo this version."""
    op.drop_table("seal_leaf")
    op.drop_table("seal")
    op.drop_table("removed_blob")
    op.drop_index("ix_evidence_written", table_name="evidence")
