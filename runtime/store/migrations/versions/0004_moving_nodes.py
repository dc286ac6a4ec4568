"""Finds what keeps a session from ending without a look at what has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOVING = "status IN ('ready', 'running', 'scheduled', 'waiting_approval', 'suspended')"


def upgrade() -> None:
    """Apply this version."""
    op.create_index(
        "ix_node_moving",
        "node",
        ["session_id"],
        sqlite_where=sa.text(_MOVING),
        postgresql_where=sa.text(_MOVING),
    )
    op.create_index(
        "ix_step_followed",
        "step",
        ["session_id"],
        sqlite_where=sa.text("propagated = 0"),
        postgresql_where=sa.text("NOT propagated"),
    )


def downgrade() -> None:
    """Take this version back."""
    op.drop_index("ix_step_followed", "step")
    op.drop_index("ix_node_moving", "node")
