"""The tables of what was measured of deltas: their scores, and where the rows of each were sent."""

from typing import get_args

from sqlalchemy import CheckConstraint, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.records import ScoreMode
from registry.schema.base import Base, check_in, foreign_key, partial_index
from registry.schema.tables import Delta

ALONE = "mode = 'oracle' AND stream_id IS NULL AND step = 0"  # a delta's own score, with the task known


class ScoreRow(Base):
    """One measured value of a delta on its task; at most one for each place where it can be measured."""

    __tablename__ = "scores"
    # Two partial indices, because NULLs are distinct in a unique one and most scores belong to no stream.
    __table_args__ = (
        check_in("mode", get_args(ScoreMode)),
        CheckConstraint("rows >= 0", name="rows"),
        CheckConstraint("low <= high", name="interval"),
        Index(None, "step", "id"),
        Index(None, "task_id", "id"),
        partial_index("ix_scores_best", ALONE, "split", "task_id", "metric", "value"),
        partial_index("ix_scores_stream", "stream_id IS NOT NULL", "stream_id", "step", "id"),
        *(
            partial_index(
                f"uq_scores_{name}", f"stream_id IS {null}", "delta_id", *columns, "mode", "split", "metric", "step"
            )
            for name, columns, null in (("alone", (), "NULL"), ("in_stream", ("stream_id",), "NOT NULL"))
        ),
    )

    delta_id: Mapped[int] = foreign_key("deltas")
    task_id: Mapped[int] = foreign_key("tasks", index=False)  # indices above begin with these two
    split: Mapped[str]
    metric: Mapped[str]
    value: Mapped[float]
    rows: Mapped[int]
    low: Mapped[float | None]
    high: Mapped[float | None]
    step: Mapped[int] = mapped_column(default=0)
    mode: Mapped[ScoreMode] = mapped_column(Text)
    stream_id: Mapped[int | None] = foreign_key("streams", index=False)


class Confusion(Base):
    """How many test rows of a delta were sent to another, of those learned up to position `step` of a stream."""

    __tablename__ = "confusions"
    __table_args__ = (
        UniqueConstraint("stream_id", "step", "delta_id", "routed_to_id"),
        CheckConstraint("rows > 0", name="rows"),
    )

    stream_id: Mapped[int] = foreign_key("streams", index=False)  # the unique index begins with it
    step: Mapped[int]
    delta_id: Mapped[int] = foreign_key("deltas")
    routed_to_id: Mapped[int] = foreign_key("deltas")
    rows: Mapped[int]

    delta: Mapped[Delta] = relationship(foreign_keys=delta_id, lazy="joined", innerjoin=True)
    routed_to: Mapped[Delta] = relationship(foreign_keys=routed_to_id, lazy="joined", innerjoin=True)
