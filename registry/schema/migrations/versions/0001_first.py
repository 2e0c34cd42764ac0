"""The first schema: backbones, tasks, streams, positions, deltas, lineage, scores and signatures."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Each after those it refers to.
TABLES = ("backbones", "tasks", "deltas", "signatures", "streams", "lineage", "positions", "scores")


def upgrade() -> None:
    """Create the tables."""
    _backbones()
    _tasks()
    _deltas()
    _signatures()
    _streams()
    _lineage()
    _positions()
    _scores()


def downgrade() -> None:
    """Drop the tables."""
    for table in reversed(TABLES):
        op.drop_table(table)


def _backbones() -> None:
    op.create_table(
        "backbones",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("hidden_size", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("pooling", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backbones")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_backbones_fingerprint")),
    )


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("fingerprints", sa.JSON(), nullable=False),
        sa.Column("rows", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("name", name=op.f("uq_tasks_name")),
    )


def _deltas() -> None:
    op.create_table(
        "deltas",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("backbone_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("budget", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("warm_start", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("examples_per_second", sa.Double(), nullable=True),
        sa.Column("predictions", sa.String(), nullable=True),
        sa.Column("mlflow_run", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('champion', 'candidate', 'archived')", name=op.f("ck_deltas_status")),
        sa.CheckConstraint("bytes >= 0 AND parameters >= 0 AND share >= 0", name=op.f("ck_deltas_size")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_deltas_version")),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbones.id"], name=op.f("fk_deltas_backbone_id_backbones")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_deltas_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deltas")),
        sa.UniqueConstraint("task_id", "version", name=op.f("uq_deltas_task_id_version")),
    )
    op.create_index(op.f("ix_deltas_backbone_id"), "deltas", ["backbone_id"], unique=False)
    op.create_index(
        "uq_deltas_champion",
        "deltas",
        ["task_id", "backbone_id"],
        unique=True,
        sqlite_where=sa.text("status = 'champion'"),
        postgresql_where=sa.text("status = 'champion'"),
    )


def _signatures() -> None:
    op.create_table(
        "signatures",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("backbone_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("pooling", sa.String(), nullable=False),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_signatures_rows")),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbones.id"], name=op.f("fk_signatures_backbone_id_backbones")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_signatures_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signatures")),
        sa.UniqueConstraint("task_id", "backbone_id", name=op.f("uq_signatures_task_id_backbone_id")),
    )
    op.create_index(op.f("ix_signatures_backbone_id"), "signatures", ["backbone_id"], unique=False)


def _streams() -> None:
    op.create_table(
        "streams",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("backbone_id", sa.Integer(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("mlflow_run", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbones.id"], name=op.f("fk_streams_backbone_id_backbones")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_streams")),
        sa.UniqueConstraint("name", name=op.f("uq_streams_name")),
    )
    op.create_index(op.f("ix_streams_backbone_id"), "streams", ["backbone_id"], unique=False)


def _lineage() -> None:
    op.create_table(
        "lineage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("child_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.CheckConstraint("parent_id < child_id", name=op.f("ck_lineage_parent_first")),
        sa.ForeignKeyConstraint(["child_id"], ["deltas.id"], name=op.f("fk_lineage_child_id_deltas")),
        sa.ForeignKeyConstraint(["parent_id"], ["deltas.id"], name=op.f("fk_lineage_parent_id_deltas")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lineage")),
        sa.UniqueConstraint("child_id", "parent_id", "kind", name=op.f("uq_lineage_child_id_parent_id_kind")),
    )
    op.create_index(op.f("ix_lineage_parent_id"), "lineage", ["parent_id"], unique=False)


def _positions() -> None:
    op.create_table(
        "positions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("task_name", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("holder", sa.String(), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delta_id", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'held') = (holder IS NOT NULL)", name=op.f("ck_positions_held_by_one")),
        sa.CheckConstraint("state IN ('waiting', 'held', 'learned', 'failed')", name=op.f("ck_positions_state")),
        sa.CheckConstraint("number >= 0", name=op.f("ck_positions_number")),
        sa.ForeignKeyConstraint(["delta_id"], ["deltas.id"], name=op.f("fk_positions_delta_id_deltas")),
        sa.ForeignKeyConstraint(["stream_id"], ["streams.id"], name=op.f("fk_positions_stream_id_streams")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_positions_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_positions")),
        sa.UniqueConstraint("stream_id", "number", name=op.f("uq_positions_stream_id_number")),
    )
    op.create_index(op.f("ix_positions_delta_id"), "positions", ["delta_id"], unique=False)
    op.create_index(op.f("ix_positions_task_id"), "positions", ["task_id"], unique=False)


def _scores() -> None:
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delta_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "mode IN ('oracle', 'routed', 'scratch', 'frozen', 'neighbour', 'curve')",
            name=op.f("ck_scores_mode"),
        ),
        sa.CheckConstraint("low <= high", name=op.f("ck_scores_interval")),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_scores_rows")),
        sa.ForeignKeyConstraint(["delta_id"], ["deltas.id"], name=op.f("fk_scores_delta_id_deltas")),
        sa.ForeignKeyConstraint(["stream_id"], ["streams.id"], name=op.f("fk_scores_stream_id_streams")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_scores_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scores")),
    )
    op.create_index(op.f("ix_scores_delta_id"), "scores", ["delta_id"], unique=False)
    op.create_index(op.f("ix_scores_stream_id"), "scores", ["stream_id"], unique=False)
    op.create_index(op.f("ix_scores_task_id"), "scores", ["task_id"], unique=False)
    op.create_index(
        "uq_scores_alone",
        "scores",
        ["delta_id", "mode", "split", "metric", "step"],
        unique=True,
        sqlite_where=sa.text("stream_id IS NULL"),
        postgresql_where=sa.text("stream_id IS NULL"),
    )
    op.create_index(
        "uq_scores_in_stream",
        "scores",
        ["delta_id", "stream_id", "mode", "split", "metric", "step"],
        unique=True,
        sqlite_where=sa.text("stream_id IS NOT NULL"),
        postgresql_where=sa.text("stream_id IS NOT NULL"),
    )
