"""Names of sites as methods give them: single sites, groups, and every attention or one kind of it."""

from collections.abc import Collection, Mapping

from continual.backbones.sites import Site
from continual.errors import MethodError

_ATTENTIONS = {"attn": ("attn", "cross"), "self": ("attn",)}  # roles in the tables by the role in a name


def expand_group(
    sites: Mapping[str, Site], name: str, *, family: str, absent: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return the names of the sites that `name` stands for: itself, or the members of a group.

    `attn` and `attn.q` stand for every attention, cross-attention included, `self.q` for self-attention alone.

    Args:
        sites: The sites by name.
        name: Name of a site or a group.
        family: Name of the family.
        absent: Reasons why the family lacks sites, by their names.

    Raises:
        MethodError: `name` is neither a site nor a group.
    """
    role, dot, part = name.partition(".")
    candidates = tuple(r + dot + part for r in _ATTENTIONS.get(role, (role,)))
    names = tuple(key for key in candidates if key in sites)
    names = names or tuple(key for key, site in sites.items() if name and site.group == name)
    if not names:
        reason = next((f": {absent[key]}" for key in candidates if absent and key in absent), "")
        groups = ", ".join(sorted({site.group for site in sites.values()} - {""}))
        raise MethodError(
            f"family {family!r} has no site {name!r}{reason}; it has: {', '.join(sites)}; and the groups: {groups}"
        )
    return names


def contract_attentions(names: Collection[str], of_all: Collection[str]) -> tuple[str, ...]:
    """Return the shortest names for some of a family's sites, the inverse of `expand_group`.

    Args:
        names: Names in the family's tables.
        of_all: All of the family's names of this kind.

    >>> contract_attentions(["attn.q", "cross.q", "attn.v"], ["attn.q", "cross.q", "attn.v", "cross.v"])
    ('attn.q', 'self.v')
    >>> contract_attentions(["attn.q"], ["attn.q", "attn.v"])
    ('attn.q',)
    """
    contracted = []
    for name in names:
        role, dot, part = name.partition(".")
        if role == "cross" and f"attn{dot}{part}" in names:
            continue
        is_self = role == "attn" and f"cross{dot}{part}" in set(of_all) - set(names)
        contracted.append(f"self{dot}{part}" if is_self else name)
    return tuple(contracted)
