"""Runs of other strategies over a stream, with scores after every task; the gain of a warm start."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MODES = "mode IN ('oracle', 'routed', 'scratch', 'frozen', 'neighbour', 'curve')"


def upgrade() -> None:
    """Add the strategy tables and the column `lineage.gain`."""
    op.add_column("lineage", sa.Column("gain", sa.Double(), nullable=True))
    _runs()
    _steps()
    _scores()


def _runs() -> None:
    op.create_table(
        "strategy_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("tasks", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=True),
        sa.Column("mlflow_run", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IS NULL OR finished_at IS NULL", name=op.f("ck_strategy_runs_finished")),
        sa.ForeignKeyConstraint(["stream_id"], ["streams.id"], name=op.f("fk_strategy_runs_stream_id_streams")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_strategy_runs")),
        sa.UniqueConstraint("stream_id", "strategy", "recipe", name=op.f("uq_strategy_runs_stream_id_strategy_recipe")),
    )


def _steps() -> None:
    op.create_table(
        "strategy_steps",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("number >= 0", name=op.f("ck_strategy_steps_number")),
        sa.CheckConstraint("seconds >= 0 AND parameters >= 0 AND bytes >= 0", name=op.f("ck_strategy_steps_size")),
        sa.ForeignKeyConstraint(["run_id"], ["strategy_runs.id"], name=op.f("fk_strategy_steps_run_id_strategy_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_strategy_steps")),
        sa.UniqueConstraint("run_id", "number", name=op.f("uq_strategy_steps_run_id_number")),
    )


def _scores() -> None:
    op.create_table(
        "strategy_scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("step_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_strategy_scores_rows")),
        sa.CheckConstraint(MODES, name=op.f("ck_strategy_scores_mode")),
        sa.ForeignKeyConstraint(
            ["step_id"], ["strategy_steps.id"], name=op.f("fk_strategy_scores_step_id_strategy_steps")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_strategy_scores")),
        sa.UniqueConstraint(
            "step_id", "task", "mode", "metric", name=op.f("uq_strategy_scores_step_id_task_mode_metric")
        ),
    )
