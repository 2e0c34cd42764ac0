"""The command that serves what was learned."""

from typing import Annotated

import typer

from continual.cli.options import BackboneName, Common, app, command, say
from continual.errors import InputError
from continual.settings import FALSE_ABSTENTIONS

NEEDED = "serving needs the extra `serve`; install it: pip install 'continual[serve]'"


@command(app)
def serve(
    common: Common,
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
    ] = FALSE_ABSTENTIONS,
    router: Annotated[str, typer.Option(help="auto, ridge, mahalanobis, or one of an installed package.")] = "auto",
    backbone: BackboneName = None,
) -> None:
    """Answer over HTTP: every learned task of a backbone, and a page to try it, until it is told to end."""
    try:
        from continual.serve import Limits, Serving, application, is_local, listening
        from continual.serve import serve as answer_on
    except ImportError as error:
        raise InputError(f"{NEEDED} ({error})") from error
    local = is_local(host)
    with common.registry() as registry:
        if not local and not registry.active_keys():
            raise InputError(
                f"--host {host} can be reached from other machines, and the registry has no key; "
                "make one first (`continual keys add NAME`), or listen on 127.0.0.1"
            )
    with listening(host, port) as at, common.learner(backbone) as learner:
        serving = Serving(learner.backbone, learner.registry, router=router, false_abstentions=abstain, slots=slots)
        limits = Limits(rows=rows, waiting=waiting, seconds=timeout)
        address, found = at.getsockname()[:2]
        say(f"serving on http://{f'[{address}]' if ':' in address else address}:{found}")
        answer_on(application(serving, local=local, limits=limits, poll=poll), at, grace=timeout)
