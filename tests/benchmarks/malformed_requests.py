"""Malformed requests, as bytes on a socket, drawn at random."""

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from tests.helpers.hostile_bodies import HOSTILE

POST, CHAT, EMBED = "/v1/predict", "/v1/chat/completions", "/v1/embeddings"
GOOD = {"rows": [{"text": "meow", "task": "task-0"}]}
LONG = 1 << 16
NAME = 1_000_000  # characters of a name that is far too long


@dataclass(frozen=True)
class Garbage:
    """A malformed request.

    Attributes:
        sent: Its bytes.
        pieces: The number of writes, with pauses between them.
        leaves: Whether the client disconnects without reading an answer.
    """

    sent: bytes
    pieces: int = 1
    leaves: bool = False


Draw = Callable[[Random], Garbage]


def http(body: bytes, *, path: str = POST, method: str = "POST", length: int | None = None, **headers: str) -> bytes:
    """Return one HTTP request; `length` may contradict the body's."""
    all_headers = {"host": "127.0.0.1", "content-type": "application/json", "connection": "close"}
    all_headers |= {"content-length": str(len(body) if length is None else length)}
    all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def noise(draw: Random, max_length: int = 400) -> bytes:
    return draw.randbytes(draw.randint(1, max_length))


def body(draw: Random) -> bytes:
    """Return an invalid or almost valid body."""
    wrong_value = draw.choice([None, True, -1, 1e308, 10**400, [], {}, "", "\0", "a" * LONG, [["a"]], {"text": 1}])
    almost_valid = [
        {"rows": wrong_value},
        {"rows": [wrong_value]},
        {"rows": [{"text": wrong_value, "task": "task-0"}]},
        {"rows": [{"text": "meow", "task": wrong_value}]},
        {"rows": [{"text": ["meow"] * draw.randint(0, 4), "task": "task-0"}]},
        {"rows": [{"text": "meow", "task": "task-0", "more": wrong_value}]},
        {"rows": [{"text": "meow"}], "at_least": wrong_value},
        {"rows": [{"text": "meow\0" * 9, "task": f"task-{draw.randint(-3, 9)}"}]},
        {"rows": [{"text": chr(draw.randint(0, 0x10FFFF)) * 3, "task": chr(draw.randint(0, 0x10FFFF))}]},
        {"model": "writer", "messages": [{"role": "user", "content": wrong_value}]},
        {"model": "writer", "prompt": wrong_value, "max_tokens": wrong_value},
        {"model": wrong_value, "input": wrong_value},
    ]
    written = json.dumps(draw.choice(almost_valid)).encode()
    harmed = [
        written,
        written[: draw.randint(0, len(written))],
        b'{"rows": [{"text": "\\ud800", "task": "task-0"}]}',
        b'{"rows": [{"text": "meow", "task": "\\udfff"}]}',
        b'{"rows": [{"text": "\xff\xfe", "task": "task-0"}]}',
        b'{"rows": [{"text": "a"}], "at_least": NaN}',
        b'{"rows": [{"text": "a"}], "at_least": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"rows":' * 5000 + b"1" + b"}" * 5000,
        b"\xef\xbb\xbf" + written,
        json.dumps(GOOD).encode("utf-16"),
        noise(draw),
        b"",
    ]
    return draw.choice(harmed)


def _path(draw: Random) -> str:
    return draw.choice([POST, POST, "/v1/completions", CHAT, EMBED])


def _odd_path(draw: Random) -> str:
    paths = ["/v1/tasks", "/v1/deltas", "/v1/lineage", "/v1/similar", "/v1/report", "/v1/models/", "/metrics", "/"]
    tails = ["?limit=0", "?limit=9999999999999999999999", "?after=%00", "?delta=%ED%A0%80", "?task=%F0%28", "/../../x"]
    return draw.choice(paths) + draw.choice([*tails, "%00", "%2e%2e%2f", "?" + "a=1&" * 3000, "?stream=" + "é" * 9])


def _bad_headers(draw: Random) -> bytes:
    name = draw.choice(["authorization", "x-request-timeout", "host", "accept", "content-type", "cookie", "expect"])
    junk = ["\x80\xff", "nan", "inf", "-1", "1e999", "a" * 9000, "Bearer \xe9\xff", "100-continue", ";;;", "evil.test"]
    return http(json.dumps(GOOD).encode(), path=POST, method="POST", length=None, **{name: draw.choice(junk)})


def _encoded(draw: Random) -> bytes:
    packed = gzip.compress(json.dumps(GOOD).encode() * draw.choice([1, 5000]))
    kind = draw.choice(
        ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=x"]
    )
    return draw.choice([http(packed, content_encoding="gzip"), http(json.dumps(GOOD).encode(), content_type=kind)])


def _chunked(draw: Random) -> bytes:
    chunks = draw.choice(
        [b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\n{\r\n0\r\n\r\n", b"ffffffffffffffff\r\n{}\r\n", b"0\r\n" * 9]
    )
    return http(chunks, transfer_encoding="chunked").replace(b"content-length", b"x-length")


def _large(draw: Random) -> bytes:
    rows = [{"text": "meow " * draw.choice([1, 4000]), "task": "task-0"}] * draw.choice([1024, 1025, 4000])
    return http(json.dumps({"rows": rows}).encode()[: 9 << 20])


def _hostile(draw: Random) -> bytes:
    return http(HOSTILE[draw.choice([*HOSTILE])], path=_path(draw))


def _names(draw: Random) -> bytes:
    """Draw a name that no database holds, or of megabytes, in each place that takes one."""
    name = draw.choice(["a", "\\u0000", "\\ud800", "\U0001f600"]) * draw.choice([1, 300, NAME])
    places = ['{"rows": [{"text": "meow", "task": "%s"}]}', '{"rows": [{"text": "%s"}]}', '{"%s": 1}']
    models = ['{"model": "%s", "prompt": "meow"}', '{"model": "%s", "input": "meow"}']
    return http((draw.choice([*places, *models]) % name).encode(), path=_path(draw))


def _large_headers(draw: Random) -> bytes:
    size = draw.choice([LONG - 200, LONG, 1 << 20])
    good = json.dumps(GOOD).encode()
    many = http(good).replace(b"\r\n\r\n", b"\r\n" + b"x: a\r\n" * (size // 6) + b"\r\n")
    return draw.choice([http(good, cookie="a" * size), many, http(good, path="/" + "a" * size)])


GARBAGE: Mapping[str, Draw] = {
    "bodies": lambda draw: Garbage(http(body(draw), path=_path(draw))),
    "queries": lambda draw: Garbage(http(b"", path=_odd_path(draw), method="GET")),
    "methods": lambda draw: Garbage(
        http(
            body(draw), path=_path(draw), method=draw.choice(["PUT", "GET", "TRACE", "OPTIONS", "BREW", "HEAD", "p\0"])
        )
    ),
    "headers": lambda draw: Garbage(_bad_headers(draw)),
    "encodings": lambda draw: Garbage(_encoded(draw)),
    "chunks": lambda draw: Garbage(_chunked(draw)),
    "large": lambda draw: Garbage(_large(draw)),
    "hostile": lambda draw: Garbage(_hostile(draw)),
    "half_sent": lambda draw: Garbage(_hostile(draw)[: draw.randint(200, 8_000_000)], leaves=True),
    "names": lambda draw: Garbage(_names(draw)),
    "large_headers": lambda draw: Garbage(_large_headers(draw)),
    "lengths": lambda draw: Garbage(
        http(body(draw)[:999], length=draw.choice([-1, 0, 5, 1 << 40, 10**30])), leaves=True
    ),
    "noise": lambda draw: Garbage(noise(draw, 4000)),
    "pipelines": lambda draw: Garbage(b"".join(http(body(draw)[:999]) for _ in range(9)) + noise(draw)),
    "slowly": lambda draw: Garbage(http(json.dumps(GOOD).encode()), pieces=20),
    "broken_off": lambda draw: Garbage(http(json.dumps(GOOD).encode())[: draw.randint(1, 200)], leaves=True),
    "left": lambda draw: Garbage(http(json.dumps({"rows": GOOD["rows"] * 200}).encode()), leaves=True),
}
