"""Deadlines and limits of connections, with a small application on a real socket."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from continual.serve import ConnectionLimits, bind_socket, create_server
from tests.helpers.fresh_processes import run_python

SHORT = ConnectionLimits(
    header_seconds=0.5, body_seconds=0.5, write_seconds=0.5, header_bytes=4096, body_bytes=1000, connections=16
)
HEAD = b"POST / HTTP/1.1\r\nhost: localhost\r\n"
Address = tuple[str, int]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the number of bytes in the body, `/slow` after a second and `/large` with much."""
    if scope["type"] != "http":
        return
    request = Request(scope, receive)
    try:
        body = await request.body()
    except ClientDisconnect:
        return
    if request.url.path == "/slow":
        await asyncio.sleep(1)
    await PlainTextResponse("x" * (1 << 26) if request.url.path == "/large" else str(len(body)))(scope, receive, send)


@contextmanager
def running(limits: ConnectionLimits) -> Iterator[Address]:
    with bind_socket("127.0.0.1", 0) as listener:
        server = create_server(app, grace=5, limits=limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def address() -> Iterator[Address]:
    with running(SHORT) as address:
        yield address


def rest(connection: socket.socket, *, seconds: float = 5) -> bytes:
    """Return all that comes until the server closes the connection; fail if it does not in time."""
    connection.settimeout(seconds)
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received


def answers(address: Address) -> bool:
    return httpx.post(f"http://{address[0]}:{address[1]}/", content=b"abc", timeout=1).text == "3"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        HEAD,
        HEAD + b"x-long: ",
        HEAD + b"content-length: 100\r\n\r\nabc",
        HEAD + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
def test_a_request_that_is_not_sent_to_its_end_is_closed(address: Address, sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert rest(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 2
    assert answers(address)


def test_bytes_that_drip_do_not_prolong_a_deadline(address: Address) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(HEAD + b"content-length: 3\r\n\r\nabc")
        start = time.monotonic()
        with suppress(OSError):  # the server closed it
            while time.monotonic() - start < 5:
                connection.sendall(b"\r\n")  # allowed between requests
                time.sleep(0.05)
        assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"x-long: " + b"a" * 1_000_000,
        HEAD + b"".join(b"x-%d: a\r\n" % i for i in range(100_000)),
        b"GET /" + b"a" * 1_000_000,
        HEAD + b"x-long: " + b"a" * 5000 + b"\r\ncontent-length: 0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx-trailer: " + b"a" * 1_000_000,
        HEAD + b"content-length: 1000000\r\n\r\n" + b"a" * 1_000_000,
    ],
)
def test_what_is_too_large_is_refused_before_its_end(address: Address, sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        with suppress(OSError):  # the server does not wait for all of it
            connection.sendall(sent)
        received = rest(connection)
        assert received == b"" or received[9:12] in (b"431", b"413")
    assert answers(address)


def test_large_headers_get_a_response_in_the_common_format(address: Address) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(HEAD + b"x-long: " + b"a" * 5000 + b"\r\ncontent-length: 0\r\n\r\n")
        head, _, body = rest(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}


def test_a_response_that_is_not_read_is_ended(address: Address) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(2)
        assert len(rest(connection)) < 1 << 26


def test_idle_connections_make_room_for_others() -> None:
    limits = ConnectionLimits(header_seconds=60, connections=16)
    with running(limits) as address, ExitStack() as opened:
        idle = [opened.enter_context(socket.create_connection(address)) for _ in range(300)]
        assert answers(address)
        assert rest(idle[0]) == b"", "the oldest had to go"


def test_connections_that_are_being_answered_stay() -> None:
    with running(ConnectionLimits(connections=16)) as address, ExitStack() as opened:
        slow = [opened.enter_context(socket.create_connection(address)) for _ in range(16)]
        for connection in slow:
            connection.sendall(b"GET /slow HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        time.sleep(0.3)
        with socket.create_connection(address) as refused:
            assert rest(refused).startswith(b"HTTP/1.1 503 ")
        assert [rest(connection)[:12] for connection in slow] == [b"HTTP/1.1 200"] * 16


def test_the_number_of_connections_fits_the_limit_of_descriptors() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from continual.serve.core.connections import connection_limit\n"
        "print(connection_limit())"
    )
    assert 16 <= int(run_python("-c", script)) <= 256 - 64


def test_a_closing_server_finishes_requests_and_refuses_new_ones() -> None:
    with bind_socket("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        server = create_server(app, grace=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with socket.create_connection(address) as accepted:
            accepted.sendall(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
            time.sleep(0.3)
            server.should_exit = True
            time.sleep(0.3)
            response = httpx.get(f"http://{address[0]}:{address[1]}/", timeout=1)
            assert (response.status_code, response.json()["error"]["type"]) == (503, "Closing")
            assert rest(accepted).startswith(b"HTTP/1.1 200 ")
        thread.join(5)
        assert not thread.is_alive()
