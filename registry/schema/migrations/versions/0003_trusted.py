"""Tombstones, leases, checkpoints, events, an outbox for MLflow, the registry's id, replays.

Also the splits that a delta was learned from, indices for every query, and views for SQL users.
"""

import sqlalchemy as sa
from alembic import op

from registry.schema.migrations.views_0003 import views

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add tables, columns, indices and views, and fill them from the existing rows."""
    op.add_column("tasks", sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True))
    _deltas()
    _data()
    _signatures()
    _positions()
    with op.batch_alter_table("lineage") as lineage:
        lineage.alter_column("kind", type_=sa.Text(), existing_type=sa.String(), existing_nullable=False)
        lineage.create_check_constraint(
            op.f("ck_lineage_kind"),
            "kind IN ('warm_start', 'merged', 'subspace', 'retrained', 'stage', 'import')",
        )
    _checkpoints()
    _events()
    _outbox()
    _identity()
    _splits()
    _indices()
    for name, query in views(op.get_bind().dialect.name).items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def _deltas() -> None:
    with op.batch_alter_table("deltas") as deltas:
        deltas.alter_column("digest", existing_type=sa.String(), nullable=True)
        deltas.add_column(sa.Column("replay", sa.String(), nullable=True))
        deltas.add_column(sa.Column("data", sa.JSON(), nullable=True))
        deltas.drop_constraint(op.f("ck_deltas_status"), type_="check")
        deltas.create_check_constraint(
            op.f("ck_deltas_status"), "status IN ('champion', 'candidate', 'archived', 'purged')"
        )
        deltas.create_check_constraint(op.f("ck_deltas_purged"), "(status = 'purged') = (digest IS NULL)")


def _data() -> None:
    """Fill `deltas.data` of each task's newest delta from its task; the folder was not recorded."""
    newest = sa.text(
        "SELECT d.id, d.seed, t.spec, t.fingerprints, t.rows FROM deltas d JOIN tasks t ON t.id = d.task_id "
        "WHERE d.warm_start <> 'imported' AND d.version = (SELECT max(version) FROM deltas WHERE task_id = t.id)"
    ).columns(spec=sa.JSON(), fingerprints=sa.JSON(), rows=sa.JSON())
    deltas = sa.table("deltas", sa.column("id", sa.Integer()), sa.column("data", sa.JSON()))
    for row in op.get_bind().execute(newest).mappings().all():
        data = {"folder": None, **{key: row[key] for key in ("spec", "seed", "fingerprints", "rows")}}
        op.execute(deltas.update().where(deltas.c.id == row["id"]).values(data=data))


def _signatures() -> None:
    """Give each delta a signature: the one stored per task is the best available for all versions."""
    query = sa.text(
        "SELECT d.id AS delta_id, s.digest, s.rows, s.layer, s.pooling "
        "FROM signatures s JOIN deltas d ON d.task_id = s.task_id AND d.backbone_id = s.backbone_id ORDER BY d.id"
    )
    rows = [dict(row) for row in op.get_bind().execute(query).mappings()]
    op.drop_table("signatures")
    signatures = op.create_table(
        "signatures",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delta_id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("pooling", sa.String(), nullable=False),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_signatures_rows")),
        sa.ForeignKeyConstraint(["delta_id"], ["deltas.id"], name=op.f("fk_signatures_delta_id_deltas")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signatures")),
        sa.UniqueConstraint("delta_id", name=op.f("uq_signatures_delta_id")),
    )
    op.bulk_insert(signatures, rows)


def _positions() -> None:
    with op.batch_alter_table("positions") as positions:
        positions.add_column(sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))
        positions.alter_column(
            "heartbeat_at", new_column_name="lease_until", existing_type=sa.DateTime(timezone=True), nullable=True
        )
    op.execute("UPDATE positions SET lease_until = CURRENT_TIMESTAMP WHERE state = 'held' AND lease_until IS NULL")
    op.execute("UPDATE positions SET lease_until = NULL WHERE state <> 'held'")
    with op.batch_alter_table("positions") as positions:
        positions.create_check_constraint(op.f("ck_positions_leased"), "(state = 'held') = (lease_until IS NOT NULL)")
        positions.create_check_constraint(op.f("ck_positions_attempts"), "attempts >= 0")


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("position_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_checkpoints_epoch")),
        sa.ForeignKeyConstraint(["position_id"], ["positions.id"], name=op.f("fk_checkpoints_position_id_positions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("position_id", name=op.f("uq_checkpoints_position_id")),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("delta_id", sa.Integer(), nullable=True),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "what IN ('learned', 'imported', 'promoted', 'succeeded', 'archived', 'purged')",
            name=op.f("ck_events_what"),
        ),
        sa.ForeignKeyConstraint(["delta_id"], ["deltas.id"], name=op.f("fk_events_delta_id_deltas")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_events_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    for columns in (["created_at", "id"], ["task_id", "created_at", "id"], ["delta_id"]):
        op.create_index(op.f(f"ix_events_{'_'.join(columns)}"), "events", columns, unique=False)
    op.execute(
        "INSERT INTO events (task_id, delta_id, what, created_at) SELECT task_id, id, "
        "CASE warm_start WHEN 'imported' THEN 'imported' ELSE 'learned' END, created_at FROM deltas ORDER BY id"
    )
    op.execute(
        "INSERT INTO events (task_id, delta_id, what, created_at) SELECT task_id, id, 'promoted', created_at "
        "FROM deltas WHERE status IN ('champion', 'archived') ORDER BY id"
    )
    op.execute(  # only a later version that was better ended an earlier one's service
        "INSERT INTO events (task_id, delta_id, what, reason, created_at) SELECT d.task_id, d.id, 'succeeded', "
        "d.reason, COALESCE((SELECT min(n.created_at) FROM deltas n WHERE n.task_id = d.task_id AND n.id > d.id), "
        "d.created_at) FROM deltas d WHERE d.status = 'archived' ORDER BY d.id"
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("about", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("holder", sa.String(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("message IN ('delta', 'stream', 'champion', 'purged')", name=op.f("ck_outbox_message")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_outbox_attempts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    for column in ("due_at", "subject"):
        op.create_index(op.f(f"ix_outbox_{column}"), "outbox", [column], unique=False)
    tell = "INSERT INTO outbox (message, subject, due_at, created_at) SELECT '{}', {}, CURRENT_TIMESTAMP, created_at "
    op.execute(tell.format("stream", "name") + "FROM streams ORDER BY id")
    named = tell.format("delta", "(SELECT name FROM tasks WHERE tasks.id = task_id) || '@' || version")
    op.execute(named + "FROM deltas WHERE mlflow_run IS NULL ORDER BY id")
    serving = "EXISTS (SELECT 1 FROM deltas WHERE task_id = tasks.id AND status = 'champion')"
    op.execute(tell.format("champion", "name") + f"FROM tasks WHERE {serving} ORDER BY id")


def _identity() -> None:
    op.create_table(
        "identity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_identity_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity")),
    )


def _splits() -> None:
    splits = op.create_table(
        "splits",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("delta_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_splits_rows")),
        sa.ForeignKeyConstraint(["delta_id"], ["deltas.id"], name=op.f("fk_splits_delta_id_deltas")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_splits")),
        sa.UniqueConstraint("delta_id", "split", name=op.f("uq_splits_delta_id_split")),
    )
    op.create_index(op.f("ix_splits_fingerprint_delta_id"), "splits", ["fingerprint", "delta_id"], unique=False)
    deltas = sa.table("deltas", sa.column("id"), sa.column("data", sa.JSON(none_as_null=True)))
    learned = sa.select(deltas.c.id, deltas.c.data).where(deltas.c.data.is_not(None)).order_by(deltas.c.id)
    split_rows = [
        {"delta_id": delta, "split": split, "fingerprint": fingerprint, "rows": data["rows"].get(split, 0)}
        for delta, data in op.get_bind().execute(learned)
        for split, fingerprint in data["fingerprints"].items()
    ]
    op.bulk_insert(splits, split_rows)


def _indices() -> None:
    """Create indices that end with the listings' sort keys, so that a page is read without sorting."""
    for table, old, new in (
        ("deltas", "backbone_id", ["backbone_id", "id"]),
        ("lineage", "parent_id", ["parent_id", "id"]),
        ("scores", "task_id", ["task_id", "id"]),
        ("scores", None, ["step", "id"]),
    ):
        if old is not None:
            op.drop_index(op.f(f"ix_{table}_{old}"), table_name=table)
        op.create_index(op.f(f"ix_{table}_{'_'.join(new)}"), table, new, unique=False)
    op.drop_index(op.f("ix_scores_stream_id"), table_name="scores")
    for name, columns, condition in (
        ("stream", ["stream_id", "step", "id"], "stream_id IS NOT NULL"),
        ("best", ["split", "task_id", "metric", "value"], "mode = 'oracle' AND stream_id IS NULL AND step = 0"),
    ):
        where = sa.text(condition)
        op.create_index(f"ix_scores_{name}", "scores", columns, sqlite_where=where, postgresql_where=where)
