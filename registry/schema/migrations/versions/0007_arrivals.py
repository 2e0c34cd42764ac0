"""Arrivals: tasks submitted one by one, as positions of a stream without a backbone."""

import sqlalchemy as sa
from alembic import op

from registry.schema.migrations.views_0003 import views as before
from registry.schema.migrations.views_0007 import views

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

FREE = "(state = 'waiting' OR (state = 'failed' AND retries > 0))"


def upgrade() -> None:
    """Allow streams without a backbone, add the columns and indices of arrivals, and recreate the views."""
    dialect = op.get_bind().dialect.name
    for name in reversed(before(dialect)):  # SQLite alters a table by copying it, which no view may refer to meanwhile
        op.execute(f"DROP VIEW {name}")
    with op.batch_alter_table("streams") as streams:
        streams.alter_column("backbone_id", existing_type=sa.Integer(), nullable=True)
    _positions()
    for name, query in views(dialect).items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def _positions() -> None:
    with op.batch_alter_table("positions") as positions:
        positions.add_column(sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
        positions.add_column(sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True))
        positions.add_column(sa.Column("spec", sa.JSON(), nullable=True))
        positions.add_column(sa.Column("backbone", sa.String(), nullable=True))
        positions.add_column(sa.Column("retries", sa.Integer(), server_default="0", nullable=False))
        positions.drop_constraint(op.f("ck_positions_state"), type_="check")
        positions.create_check_constraint(
            op.f("ck_positions_state"), "state IN ('waiting', 'held', 'learned', 'failed', 'cancelled')"
        )
    op.create_index(op.f("ix_positions_task_name"), "positions", ["task_name"], unique=False)
    op.create_index(
        op.f("ix_positions_stream_id_state_number"), "positions", ["stream_id", "state", "number"], unique=False
    )
    falling = (sa.text("state DESC"), sa.text("priority DESC"))
    is_free, is_held = sa.text(FREE), sa.text("state = 'held'")
    turn: list[str | sa.TextClause] = ["stream_id", "backbone", *falling, "number"]
    op.create_index("ix_positions_free", "positions", turn, sqlite_where=is_free, postgresql_where=is_free)
    stream_and_task = ["stream_id", "task_name"]
    op.create_index(
        "uq_positions_held", "positions", stream_and_task, unique=True, sqlite_where=is_held, postgresql_where=is_held
    )
