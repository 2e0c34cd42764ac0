"""The command that serves learned tasks over HTTP."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from socket import gethostname
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from continual.cli.commands import app, command
from continual.cli.logs import LogFormat, log_requests
from continual.cli.options import (
    AbstentionRate,
    BackboneName,
    BackboneOptions,
    CommonOptions,
    RouterName,
    err,
    print_address,
)
from continual.escaping import escape_control_characters
from continual.settings import FALSE_ABSTENTION_RATE
from tasks.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from continual.serve import ServerConfig

SERVE_EXTRA_MISSING = "serving needs the extra `serve`; install it: pip install 'continual-deltas[serve]'"
RAY_EXTRA_MISSING = "serving by replicas needs the extra `ray`; install it: pip install 'continual-deltas[serve,ray]'"


@command(app, examples=["continual serve --port 8080", "continual serve --replicas 2 --replica-cpus 2"])
def serve(
    common: BackboneOptions,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines reach needs keys (`continual keys`).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks for new champions and keys.")] = 2.0,
    rows: Annotated[int, typer.Option(min=1, help="Maximum number of inputs in one request.")] = 1024,
    waiting: Annotated[int, typer.Option(min=1, help="Maximum number of inputs, of all requests, that wait.")] = 8192,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may wait.")] = 60.0,
    slots: Annotated[int, typer.Option(min=1, help="Maximum number of deltas on the device.")] = 256,
    abstain: AbstentionRate = FALSE_ABSTENTION_RATE,
    router: RouterName = "auto",
    backbone: BackboneName = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Number of replicas, placed by Ray Serve; by default this process answers alone."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the replicas' Ray cluster; by default a new one on this machine.")
    ] = None,
    replica_cpus: Annotated[
        float | None, typer.Option(min=0.1, help="CPU cores of each replica; by default 1.")
    ] = None,
    replica_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each replica; a fraction shares one; by default 0.")
    ] = None,
    access_log: Annotated[bool, typer.Option(help="Log every request on standard error, without texts.")] = True,
    log_format: Annotated[
        LogFormat, typer.Option(help="Form of the log; json writes one object a line.")
    ] = LogFormat.TEXT,
) -> None:
    """Serve every learned task of a backbone over HTTP, with a web page, until Ctrl-C or SIGTERM."""
    from registry import normalized_backbone_name

    try:
        from continual.serve import ACCESS_FIELDS, AccessLogMiddleware, Limits, ServerConfig, bind_socket, is_local
        from continual.serve import serve as serve_app
    except ImportError as error:
        raise InputError(f"{SERVE_EXTRA_MISSING} ({error})") from error
    replica_options = {"--address": address, "--replica-cpus": replica_cpus, "--replica-gpus": replica_gpus}
    if replicas is None:
        _refuse_replica_options(replica_options)
    local = is_local(host)
    _check_keys(common, host, local=local)
    announce = log_requests(log_format, fields=ACCESS_FIELDS)
    with bind_socket(host, port) as listener:  # before the wait for a first task: a taken port is said at once
        served_backbone = normalized_backbone_name(_await_backbone(common, backbone, poll=poll, announce=announce))
        config = ServerConfig(
            backbone=served_backbone,
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
        bound_host, bound_port = listener.getsockname()[:2]
        netloc = f"{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"
        resources = {"cpus": replica_cpus or 1.0, "gpus": replica_gpus or 0.0}
        with _replicated(config, replicas, resources, address, netloc) if replicas else _single(config) as application:
            print_address(common, f"http://{netloc}", message="serving on", announce=announce)
            logged = AccessLogMiddleware(application) if access_log else application
            interrupted = serve_app(logged, listener, grace=timeout)
    if interrupted:
        raise KeyboardInterrupt


def _refuse_replica_options(options: dict[str, str | float | None]) -> None:
    if used := [option for option, value in options.items() if value is not None]:
        raise InputError(f"{', '.join(used)} would be of replicas, and there are none; give --replicas N too")


def _check_keys(common: CommonOptions, host: str, *, local: bool) -> None:
    with common.registry() as registry:
        if not local and not registry.active_keys():
            raise InputError(
                f"--host {host} can be reached from other machines, and the registry has no key; "
                "make one first (`continual keys add NAME`), or listen on 127.0.0.1"
            )


def _await_backbone(common: BackboneOptions, named: str | None, *, poll: float, announce: Callable[[str], None]) -> str:
    """Return the name of the backbone to serve; without a registered one, wait until a first task is learned."""
    with common.registry() as registry:
        tasks, backbones = registry.tasks(limit=1), registry.backbones()
    if not tasks:
        announce(
            f"nothing is learned in {common.home} yet; learn a task meanwhile, and it is served without a restart: "
            f"continual learn TASK.yaml --home {common.home}"
        )
    while named is None and not backbones:
        time.sleep(poll)
        with common.registry() as registry:
            backbones = registry.backbones()
    return named or common.only_backbone()


@contextmanager
def _single(config: "ServerConfig") -> "Iterator[FastAPI]":
    from continual.serve import create_app

    with ExitStack() as resources:
        with err.status(escape(escape_control_characters(f"loading backbone {config.backbone}"))):
            server = resources.enter_context(config.open_champions())
        yield create_app(server, local=config.local, limits=config.limits, poll=config.poll)


def _replicated(
    config: "ServerConfig", count: int, resources: dict[str, float], address: str | None, netloc: str
) -> "AbstractContextManager[FastAPI]":
    try:
        from continual.serve.replicated import ReplicaConfig, deploy_replicas
    except ImportError as error:
        raise InputError(f"{RAY_EXTRA_MISSING} ({error})") from error
    name = f"continual {gethostname()} {netloc}"  # also tells servers of one port on several machines apart
    return deploy_replicas(config, ReplicaConfig(count=count, **resources, address=address, name=name))
