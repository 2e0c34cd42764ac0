"""Methods composed of other methods: trained together, or one after the other."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from continual.deltas.edit import Edit
from continual.deltas.method import MethodSettings, Preset, Scale, method_settings, upgrade_part
from continual.deltas.methods.adapter import Adapter, ParallelAdapter
from continual.deltas.methods.bitfit import BitFit
from continual.deltas.methods.prefix import Prefix
from tasks import Method


class ParallelComposition(MethodSettings):
    """Union of several methods as one delta, trained together: the edits of all parts, in their order.

    He et al. (2022), arXiv:2110.04366, section 4.6. In a stream: `{name: union, parts: [{name: bitfit}, …]}`.

    Attributes:
        parts: The methods with their settings.

    >>> len(ParallelComposition.model_validate({"parts": ["bitfit", {"name": "lora", "rank": 2}]}).edits())
    3
    """

    parts: tuple[Method, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        self.edits()
        return self

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Upgrade the settings of every part."""
        return _upgrade_parts(settings, generates=generates)

    def edits(self) -> tuple[Edit, ...]:
        """Return the edits of all parts."""
        return tuple(edit for part in self.parts for edit in method_settings(part).edits())


class SequentialComposition(MethodSettings):
    """Sequence of methods: each is attached and trained for its share of the epochs, then frozen for the next.

    In a stream: `{name: sequential, parts: [{name: lora}, {name: adapter}]}`. Ding et al. (2022), "Delta Tuning",
    arXiv:2203.06904, section 5.2.

    Attributes:
        parts: The methods with their settings, in the order of training.

    >>> SequentialComposition.model_validate({"parts": ["lora", "bitfit"]}).stages
    2
    """

    parts: tuple[Method, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        self.edits()
        return self

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Upgrade the settings of every part."""
        return _upgrade_parts(settings, generates=generates)

    def edits(self) -> tuple[Edit, ...]:
        """Return the edits of all parts, each in the stages of its part."""
        return tuple(self._staged_edits())

    def _staged_edits(self) -> Iterator[Edit]:
        first_stage = 0
        for part in self.parts:
            settings = method_settings(part)
            for edit in settings.edits():
                yield replace(edit, stages=tuple(first_stage + stage for stage in edit.stages))
            first_stage += settings.stages


def _upgrade_parts(settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
    return {**settings, "parts": [upgrade_part(part, generates=generates) for part in settings["parts"]]}


class MixAndMatch(MethodSettings):
    """MAM: a short prefix at every attention and a scaled parallel adapter beside every feed-forward.

    Parameters: 2 · length · E per attention and 2 · size · D + D + size per layer, E the width of keys, D of a hidden
    state.
    He et al. (2022), arXiv:2110.04366, section 4.6: the best of their combinations.

    Attributes:
        length: Number of prefix vectors.
        size: Bottleneck size of the adapters.
        scale: Factor of the adapters' change.
        reads: The input of the adapters, as of `ParallelAdapter`.
        cross_attention: Whether cross-attention has a prefix too.
        shift_positions: Whether positions of the text begin behind the prefix, as of `Prefix`.

    >>> [edit.site for edit in MixAndMatch().edits()]
    ['attn.kv', 'ffn']
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "paper": {"length": 30, "size": 512, "scale": 4.0},
        "paper_classification": {"length": 16, "size": 16, "scale": 2.0},
    }

    length: int = Field(default=16, ge=1, le=1024)
    size: int = Field(default=64, ge=1, le=4096)
    scale: Scale = 4.0
    reads: Literal["residual", "input"] = "residual"
    cross_attention: bool = True
    shift_positions: bool = False

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Upgrade to the forms that prefix and parallel adapter had in format 2."""
        of_parts = (part.upgrade({}, generates=generates) for part in (Prefix, ParallelAdapter))
        return {**settings, **next(of_parts), **next(of_parts)}

    def edits(self) -> tuple[Edit, ...]:
        """Return the edits of the prefix and of the parallel adapter."""
        prefix = Prefix(length=self.length, cross_attention=self.cross_attention, shift_positions=self.shift_positions)
        return prefix.edits() + ParallelAdapter(size=self.size, scale=self.scale, reads=self.reads).edits()


class AdapterBitFit(MethodSettings):
    """Adapters and biases trained together.

    One of the combinations of Ding et al. (2022), "Delta Tuning", arXiv:2203.06904.

    Attributes:
        size: Bottleneck size of the adapters.

    >>> len(AdapterBitFit(size=8).edits())
    6
    """

    size: int = Field(default=64, ge=1, le=4096)

    def edits(self) -> tuple[Edit, ...]:
        """Return the edits of the adapter and of BitFit."""
        return Adapter(size=self.size).edits() + BitFit().edits()
