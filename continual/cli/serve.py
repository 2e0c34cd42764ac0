"""The command that serves what was learned."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from socket import gethostname
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from continual.cli.options import BackboneName, CommonOptions, app, command, err, print_message
from continual.escaping import escape_control_characters
from continual.settings import FALSE_ABSTENTION_RATE
from registry import normalized_backbone_name
from tasks.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from continual.serve import ServerConfig

NEEDED = "serving needs the extra `serve`; install it: pip install 'continual[serve]'"
RAY_NEEDED = "serving by replicas needs the extra `ray`; install it: pip install 'continual[serve,ray]'"


@command(app)
def serve(
    common: CommonOptions,
    host: Annotated[str, typer.Option(help="The address; one that others reach needs keys (`continual keys`).")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks for new champions.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, help="Inputs that one request may hold.")] = 1024,
    waiting: Annotated[int, typer.Option(min=1, help="Inputs of all requests that may wait.")] = 8192,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may wait.")] = 60.0,
    slots: Annotated[int, typer.Option(min=1, help="Deltas that lie on the device at once.")] = 256,
    abstain: Annotated[
        float, typer.Option(min=0, max=1, help="Share of known tasks' inputs that may be refused; 0 refuses none.")
    ] = FALSE_ABSTENTION_RATE,
    router: Annotated[str, typer.Option(help="auto, ridge, mahalanobis, or one of an installed package.")] = "auto",
    backbone: BackboneName = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Answer by so many processes, through Ray Serve.")] = None,
    address: Annotated[str | None, typer.Option(help="The Ray cluster of the replicas; else this machine.")] = None,
    replica_cpus: Annotated[float | None, typer.Option(min=0.1, help="Cores of each replica; else 1.")] = None,
    replica_gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of each replica, or parts; else 0.")] = None,
) -> None:
    """Answer over HTTP: every learned task of a backbone, and a page to try it, until it is told to end."""
    try:
        from continual.serve import Limits, ServerConfig, bind_socket, is_local
        from continual.serve import serve as answer_on
    except ImportError as error:
        raise InputError(f"{NEEDED} ({error})") from error
    of_replicas = {"--address": address, "--replica-cpus": replica_cpus, "--replica-gpus": replica_gpus}
    if replicas is None and (alone := [option for option, value in of_replicas.items() if value is not None]):
        raise InputError(f"{', '.join(alone)} would be of replicas, and there are none; give --replicas N too")
    local = is_local(host)
    with common.registry() as registry:
        if not local and not registry.active_keys():
            raise InputError(
                f"--host {host} can be reached from other machines, and the registry has no key; "
                "make one first (`continual keys add NAME`), or listen on 127.0.0.1"
            )
    with bind_socket(host, port) as at:
        recipe = ServerConfig(
            backbone=normalized_backbone_name(backbone or common.only_backbone()),
            device="cpu" if replicas and not replica_gpus and common.device == "auto" else common.device,
            dtype=common.dtype,
            bits=common.bits,
            registry=common.locations.registry,
            blobs=common.locations.blobs,
            router=router,
            false_abstentions=abstain,
            slots=slots,
            local=local,
            limits=Limits(rows=rows, max_queued_rows=waiting, seconds=timeout),
            poll=poll,
        )
        found, number = at.getsockname()[:2]
        name = f"{f'[{found}]' if ':' in found else found}:{number}"
        each = {"cpus": replica_cpus or 1.0, "gpus": replica_gpus or 0.0}
        with _by_replicas(recipe, replicas, each, address, name) if replicas else _by_itself(recipe) as answering:
            print_message(f"serving on http://{name}")
            answer_on(answering, at, grace=timeout)


@contextmanager
def _by_itself(recipe: "ServerConfig") -> "Iterator[FastAPI]":
    from continual.serve import create_app

    with ExitStack() as opened:
        with err.status(escape(escape_control_characters(f"loading backbone {recipe.backbone}"))):
            serving = opened.enter_context(recipe.open_champions())
        yield create_app(serving, local=recipe.local, limits=recipe.limits, poll=recipe.poll)


def _by_replicas(
    recipe: "ServerConfig", count: int, each: dict[str, float], address: str | None, name: str
) -> "AbstractContextManager[FastAPI]":
    try:
        from continual.serve.replicated import ReplicaConfig, deploy_replicas
    except ImportError as error:
        raise InputError(f"{RAY_NEEDED} ({error})") from error
    return deploy_replicas(
        recipe, ReplicaConfig(count=count, **each, address=address, name=f"continual {gethostname()} {name}")
    )
