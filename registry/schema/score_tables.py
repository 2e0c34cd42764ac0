"""The tables of measurements of deltas: scores and routing confusions."""

from typing import get_args

from sqlalchemy import CheckConstraint, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.records import ScoreMode
from registry.schema.base import Base, check_in, foreign_key, partial_index
from registry.schema.tables import Delta

STANDALONE = "mode = 'oracle' AND stream_id IS NULL AND step = 0"  # oracle scores outside any stream


class ScoreRow(Base):
    """One measured value of a delta; unique by delta, stream, mode, split, metric and step.

    Attributes:
        delta_id: The scored delta.
        task_id: Its task.
        split: The scored split.
        metric: The metric's name.
        value: A fraction.
        rows: Number of rows.
        low: Lower end of the confidence interval.
        high: Upper end of the confidence interval.
        step: For routed scores, the stream position after which it was measured; otherwise 0.
        mode: Oracle, routed, or a baseline.
        stream_id: The stream it was measured in; NULL for a delta's own scores.
    """

    __tablename__ = "scores"
    # Two partial unique indices, because NULLs count as distinct and most scores belong to no stream.
    __table_args__ = (
        check_in("mode", get_args(ScoreMode)),
        CheckConstraint("rows >= 0", name="rows"),
        CheckConstraint("low <= high", name="interval"),
        Index(None, "step", "id"),
        Index(None, "task_id", "id"),
        partial_index("ix_scores_best", STANDALONE, "split", "task_id", "metric", "value"),
        partial_index("ix_scores_stream", "stream_id IS NOT NULL", "stream_id", "step", "id"),
        *(
            partial_index(
                f"uq_scores_{name}", f"stream_id IS {null}", "delta_id", *columns, "mode", "split", "metric", "step"
            )
            for name, columns, null in (("alone", (), "NULL"), ("in_stream", ("stream_id",), "NOT NULL"))
        ),
    )

    delta_id: Mapped[int] = foreign_key("deltas")
    task_id: Mapped[int] = foreign_key("tasks", index=False)  # an index above starts with it
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
    """The number of a delta's test rows that were routed to another delta.

    Attributes:
        stream_id: The stream.
        step: Position in the stream; the router chose among the deltas learned up to it.
        delta_id: The delta whose task the rows belong to.
        routed_to_id: The delta that the router chose.
        rows: Number of rows.
        delta: The row of `delta_id`.
        routed_to: The row of `routed_to_id`.
    """

    __tablename__ = "confusions"
    __table_args__ = (
        UniqueConstraint("stream_id", "step", "delta_id", "routed_to_id"),
        CheckConstraint("rows > 0", name="rows"),
    )

    stream_id: Mapped[int] = foreign_key("streams", index=False)  # the unique index starts with it
    step: Mapped[int]
    delta_id: Mapped[int] = foreign_key("deltas")
    routed_to_id: Mapped[int] = foreign_key("deltas")
    rows: Mapped[int]

    delta: Mapped[Delta] = relationship(foreign_keys=delta_id, lazy="joined", innerjoin=True)
    routed_to: Mapped[Delta] = relationship(foreign_keys=routed_to_id, lazy="joined", innerjoin=True)
