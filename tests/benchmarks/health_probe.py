"""Asks `/healthz` of a server on loopback, over new connections, from a process that does nothing else.

    python -m tests.benchmarks.health_probe PORT SECONDS

Prints one JSON document: `{"seconds": [of every answer], "lost": [an error for each request without one]}`.
"""

import json
import sys
import time
from http.client import HTTPConnection, HTTPException

PAUSE = 0.05  # seconds between two requests
TIMEOUT = 30.0  # seconds


def probe(port: int) -> float:
    """Return the seconds until a response with status 200 was read."""
    start = time.monotonic()
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz", headers={"connection": "close"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise HTTPException(f"status {response.status}")
    finally:
        connection.close()
    return time.monotonic() - start


def main() -> None:
    port, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
    seconds, lost = list[float](), list[str]()
    while time.monotonic() < until:
        try:
            seconds.append(round(probe(port), 4))
        except (OSError, HTTPException) as error:
            lost.append(repr(error))
        time.sleep(PAUSE)
    print(json.dumps({"seconds": seconds, "lost": lost}))


if __name__ == "__main__":
    main()
