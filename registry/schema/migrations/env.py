"""Alembic's environment, on the connection and in the transaction opened by `registry.schema.migrate`."""

from typing import Literal

from alembic import context

from registry.schema import tables  # noqa: F401 (it fills Base.metadata)
from registry.schema.base import Base, UtcDateTime
from registry.schema.revisions import VERSION_TABLE


def _include_name(name: str | None, kind: str, _parents: object) -> bool:
    # Other programs' tables may share the database: a generated migration must not drop them.
    return kind != "table" or name in Base.metadata.tables


def _render_item(_kind: str, item: object, _context: object) -> str | Literal[False]:
    # Migrations outlive the project's code, so a generated one must not refer to the project's types.
    return "sa.DateTime(timezone=True)" if isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_name=_include_name,
    render_item=_render_item,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
