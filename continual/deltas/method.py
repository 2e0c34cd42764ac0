"""What every method is: settings that a person writes, and the edits that follow from them."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from continual.deltas.edit import Edit


class MethodSettings(BaseModel, ABC):
    """Settings of one method. A subclass adds its fields and says which edits they mean.

    start: whether a fresh delta leaves the backbone's output exactly as it was, or nearly so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: ClassVar[Literal["exact", "near"]]

    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """The edits, in the order in which edits of one place are applied."""
