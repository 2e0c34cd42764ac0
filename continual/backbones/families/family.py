"""Model families: for each stack of layers a table from roles to modules, and the sizes of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from continual.backbones.site_names import expand_group
from continual.backbones.sites import Place, Site, places_of
from continual.errors import MethodError

Architecture = Literal["encoder", "causal", "seq2seq"]


@dataclass(frozen=True)
class LayerStack:
    """A stack of layers.

    Attributes:
        sites: Its sites by name.
        num_layers: Number of its layers.
        num_heads: Heads of each attention.
    """

    sites: Mapping[str, Site]
    num_layers: int
    num_heads: int

    @property
    def layer_path(self) -> str:
        """Path of its layers, with `{}` for the number; the modules of a layer's roles lie below it."""
        path = next(site.output_path for site in self.sites.values() if "{}" in site.output_path)
        return path[: path.index("{}") + len("{}")]


@dataclass(frozen=True)
class Family:
    """A model family with the sizes of one model's configuration.

    Attributes:
        name: `model_type` of the configuration.
        architecture: Encoder, causal language model, or encoder-decoder.
        stack: The layers that read a text; the encoder of an encoder-decoder.
        hidden_size: Dimensions of the stack's last hidden states.
        max_positions: Largest number of tokens; None where the positions set no limit.
        decoder: The decoder of an encoder-decoder, else None.
        load_arguments: Arguments of `from_pretrained` that leave out untrained heads.
        absent: Reasons why it lacks sites that most families have, by the sites' names.
        recognized_as: Of a family without a table, the `model_type` of the one whose table it has.
    """

    name: str
    architecture: Architecture
    stack: LayerStack
    hidden_size: int
    max_positions: int | None
    decoder: LayerStack | None = None
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    recognized_as: str = ""

    @property
    def is_recurrent(self) -> bool:
        """Whether layers of linear attention keep one state of all tokens so far."""
        return "linear.out" in self.stack.sites


FamilyFactory = Callable[[Any], Family]  # of a transformers configuration


def resolve_places(model: Any, family: Family, site: str, *, generates: bool) -> tuple[Place, ...]:
    """Return every place of a site, or of a group of sites.

    The places of each site are ordered from the lowest layer to the highest. An encoder-decoder has the encoder's
    places, followed by the decoder's if `generates`.

    Args:
        model: The transformers model.
        family: Its family.
        site: Name of a site or a group.
        generates: Whether the decoder of an encoder-decoder is edited too.

    Raises:
        MethodError: The family has no such site.
        BackboneError: The model has no module at a site's path.
    """
    stacks = {"": family.stack}
    if family.decoder and generates:
        stacks["decoder."] = family.decoder
    elif family.decoder and site in family.decoder.sites.keys() - family.stack.sites.keys():
        raise MethodError(
            f"site {site!r} of family {family.name!r} is in the decoder, which only a task that generates text uses; "
            f"other tasks have: {', '.join(family.stack.sites)}"
        )
    sites = {name: role for stack in stacks.values() for name, role in stack.sites.items()}
    names = expand_group(sites, site, family=family.name, absent=family.absent)
    return tuple(
        place
        for prefix, stack in stacks.items()
        for name in names
        if name in stack.sites
        for place in places_of(
            model, name, stack.sites[name], num_layers=stack.num_layers, num_heads=stack.num_heads, prefix=prefix
        )
    )
