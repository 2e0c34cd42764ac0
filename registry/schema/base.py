"""Common parts of all tables: constraint names, integer ids, times in UTC."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, final

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    func,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

# Migrations refer to constraints by name on every database, so no name is left to the database.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


@final
class UtcDateTime(TypeDecorator[datetime]):
    """A column type for aware UTC times, even where the database drops the zone (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        """The type of the column's values."""
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time to UTC for the database."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return a time from the database as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The declarative base of every table, with an integer primary key.

    Attributes:
        id: The primary key.
    """

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime, float: Double}

    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-1)


def now() -> datetime:
    """Return this host's current time in UTC."""
    return datetime.now(UTC)


def database_now(session: Session) -> datetime:
    """Return the current time by the database's clock: on PostgreSQL the server's."""
    moment: datetime = session.execute(select(func.current_timestamp(type_=UtcDateTime()))).scalar_one()
    return moment


def foreign_key(
    table: str, *, index: bool = True, unique: bool = False
) -> Any:  # the annotation of the column decides on NULL
    """Return a column with a foreign key to `table`, indexed by default, because joins use it."""
    return mapped_column(ForeignKey(f"{table}.id"), index=index, unique=unique)


def check_in(column: str, allowed: Sequence[str]) -> CheckConstraint:
    """Return a check that `column` is one of `allowed`; a migration extends it easier than an enum."""
    values = ", ".join(f"'{value}'" for value in allowed)
    return CheckConstraint(f"{column} IN ({values})", name=column)


def partial_index(name: str, condition: str, *columns: str | ColumnElement[Any] | InstrumentedAttribute[Any]) -> Index:
    """Return an index on the rows that meet `condition`; unique if its `name` starts with uq."""
    where = text(condition)
    return Index(name, *columns, unique=name.startswith("uq"), sqlite_where=where, postgresql_where=where)
