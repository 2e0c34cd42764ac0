"""What all tables share: names of constraints, identities, and instants in UTC."""

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

# Migrations must be able to name every constraint on every database, so none is left to the database's own taste.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


@final
class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; always aware, also where the database drops the zone (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The declarative base of every table; each has an integer identity."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime, float: Double}

    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-1)


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def database_now(session: Session) -> datetime:
    """This moment by the database's clock: on PostgreSQL the server's, whatever the hosts' own clocks say."""
    moment: datetime = session.execute(select(func.current_timestamp(type_=UtcDateTime()))).scalar_one()
    return moment


def foreign_key(table: str, *, index: bool = True, unique: bool = False) -> Any:  # its annotation decides on NULL
    """A foreign key to `table`; indexed, because every one of them is joined on."""
    return mapped_column(ForeignKey(f"{table}.id"), index=index, unique=unique)


def check_in(column: str, allowed: Sequence[str]) -> CheckConstraint:
    """A check that `column` holds one of `allowed`; unlike a database enum it can grow by a plain migration."""
    listed = ", ".join(f"'{value}'" for value in allowed)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def partial_index(name: str, condition: str, *columns: str | ColumnElement[Any] | InstrumentedAttribute[Any]) -> Index:
    """An index on the rows that meet the condition; unique where its `name` begins with uq."""
    met = text(condition)
    return Index(name, *columns, unique=name.startswith("uq"), sqlite_where=met, postgresql_where=met)
