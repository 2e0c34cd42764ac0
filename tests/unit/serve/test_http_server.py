"""The server ends on both signals, and tells Ctrl-C from SIGTERM."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from continual.serve import bind_socket, serve


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
@pytest.mark.parametrize("when", ["gc.collect", "lifespan.startup"])
def test_only_ctrl_c_is_an_interruption(
    number: int, interrupted: bool, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == when:
                signal.raise_signal(number)

    if when == "gc.collect":  # before uvicorn listens to signals
        monkeypatch.setattr(when, lambda: signal.raise_signal(number))
    with bind_socket("127.0.0.1", 0) as listener:
        assert serve(application, listener, grace=1) is interrupted
