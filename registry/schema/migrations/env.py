"""Run by Alembic for each command, on the connection and in the transaction that `registry.schema.migrate` opened."""

from typing import Literal

from alembic import context

from registry.schema import tables  # noqa: F401 (it fills Base.metadata)
from registry.schema.base import Base, UtcDateTime
from registry.schema.migrate import VERSION_TABLE


def _ours(name: str | None, kind: str, _parents: object) -> bool:
    # Another program's tables may share the database: a drafted migration must not drop them.
    return kind != "table" or name in Base.metadata.tables


def _plainly(_kind: str, item: object, _context: object) -> str | Literal[False]:
    # A migration outlives the code beside it, so a drafted one names no type of ours.
    return "sa.DateTime(timezone=True)" if isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_name=_ours,
    render_item=_plainly,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
