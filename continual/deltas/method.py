"""What every method is: settings that a person writes, and the edits that follow from them."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from continual.deltas.edit import Edit

Start = Literal["exact", "near", "changed"]


class MethodSettings(BaseModel, ABC):
    """Settings of one method. A subclass adds its fields and says which edits they mean.

    start: whether a fresh delta leaves the backbone's output exactly as it was, nearly so, or changes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: ClassVar[Start]

    @abstractmethod
    def edits(self) -> tuple[Edit, ...]:
        """The edits, in the order in which edits of one place are applied."""

    @property
    def stages(self) -> int:
        """How many stages of training there are, one after the other."""
        return 1 + max((stage for edit in self.edits() for stage in edit.stages), default=0)
