"""Commands on the API keys of `continual serve`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from continual.cli.commands import command, group
from continual.cli.options import AfterName, CommonOptions, Limit, print_message, print_rows

if TYPE_CHECKING:
    from registry import Role

KeyName = Annotated[str, typer.Argument(help="The name of a key, such as its user or program.")]


@group("keys", examples=["continual keys"])
def keys(common: CommonOptions, limit: Limit = None, after: AfterName = None) -> None:
    """List the API keys of `continual serve`, including revoked ones."""
    with common.registry() as registry:
        print_rows(common, registry.keys(limit=limit, after=after), title="Keys")


@command(keys, examples=["continual keys add website", "continual keys add operations --admin"])
def add(
    common: CommonOptions,
    name: KeyName,
    admin: Annotated[
        bool, typer.Option("--admin", help="The key may also call operations that change the server (/v1/refresh).")
    ] = False,
) -> None:
    """Add a key and print its secret, which cannot be shown again: only its digest is stored."""
    from registry import add_key

    role: Role = "admin" if admin else "read"
    with common.registry(create=True) as registry:
        secret = add_key(registry, name, role=role)
    if common.json:
        print_rows(common, [{"key": name, "role": role, "secret": secret}], title="Added")
    else:
        sys.stdout.write(f"{secret}\n")
    print_message(
        f"This is the secret of key {name!r}, role {role}. It is shown only this once; keep it where it is needed."
    )


@command(keys, examples=["continual keys revoke website"])
def revoke(common: CommonOptions, name: KeyName) -> None:
    """Revoke a key for good."""
    from registry import revoke_key

    with common.registry() as registry:
        revoked_at = revoke_key(registry, name)
    print_rows(common, [{"key": name, "revoked_at": revoked_at.isoformat()}], title="Revoked")
