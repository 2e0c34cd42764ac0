"""What a model family is: tables of roles for the stacks of layers that it has, and its sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from continual.backbones.sites import Place, Site, expand_group, places_of
from continual.errors import MethodError

Architecture = Literal["encoder", "causal", "seq2seq"]


@dataclass(frozen=True)
class LayerStack:
    """A stack of layers: the table of its sites, how many layers it has, and how many heads their attentions have."""

    sites: Mapping[str, Site]
    num_layers: int
    num_heads: int

    @property
    def layer_path(self) -> str:
        """The path of its layers, `{}` standing for the number: where the modules of every role of a layer are."""
        path = next(site.output_path for site in self.sites.values() if "{}" in site.output_path)
        return path[: path.index("{}") + len("{}")]


@dataclass(frozen=True)
class Family:
    """A family as the configuration of one model has it.

    stack: the layers that read a text; of an encoder-decoder, its encoder · decoder: the layers that write one, where
    they are others · hidden_size: dimensions of the stack's last hidden states · positions: the largest number of
    tokens, None where the positions set no limit · load: arguments of `from_pretrained` that leave out untrained heads.
    """

    name: str
    architecture: Architecture
    stack: LayerStack
    hidden_size: int
    max_positions: int | None
    decoder: LayerStack | None = None
    load_arguments: Mapping[str, Any] = field(default_factory=dict)


FamilyFactory = Callable[[Any], Family]  # of a transformers configuration


def resolve_places(model: Any, family: Family, site: str, *, generates: bool) -> tuple[Place, ...]:
    """Every place of `site`, or of the sites of a group, each site from the lowest layer to the highest.

    Of an encoder-decoder they are the encoder's, and after them, where the task `generates`, the decoder's.

    Raises MethodError for a site that the family does not have, BackboneError where a module is not where it should be.
    """
    stacks = {"": family.stack}
    if family.decoder and generates:
        stacks["decoder."] = family.decoder
    elif family.decoder and site in family.decoder.sites.keys() - family.stack.sites.keys():
        raise MethodError(
            f"site {site!r} of family {family.name!r} is in the decoder, which only a task that generates text uses; "
            f"other tasks have: {', '.join(family.stack.sites)}"
        )
    every = {name: role for stack in stacks.values() for name, role in stack.sites.items()}
    names = expand_group(every, site, family=family.name)
    return tuple(
        place
        for prefix, stack in stacks.items()
        for name in names
        if name in stack.sites
        for place in places_of(model, name, stack.sites[name], layers=stack.num_layers, heads=stack.num_heads, prefix=prefix)
    )
