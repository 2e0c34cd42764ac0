"""Two more modes of scores: a head at random initialisation, and calibration, which lies beside the score."""

from alembic import op

from registry.schema.migrations.views_0007 import views

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

MODES = "mode IN ('oracle', 'routed', 'scratch', 'frozen', 'neighbour', 'curve', 'random_init', 'calibration')"


def upgrade() -> None:
    """Extend the checks of `mode`, and recreate the views."""
    dialect = op.get_bind().dialect.name
    for name in reversed(views(dialect)):  # SQLite alters a table by copying it, which no view may refer to meanwhile
        op.execute(f"DROP VIEW {name}")
    for table in ("scores", "strategy_scores"):
        with op.batch_alter_table(table) as altered:
            altered.drop_constraint(op.f(f"ck_{table}_mode"), type_="check")
            altered.create_check_constraint(op.f(f"ck_{table}_mode"), MODES)
    for name, query in views(dialect).items():
        op.execute(f"CREATE VIEW {name} AS {query}")
