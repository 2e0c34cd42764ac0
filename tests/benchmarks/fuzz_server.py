"""Robustness of the server under an hour of invalid input, while a valid client is answered.

    python -m tests.benchmarks.fuzz_server [--minutes 2] [--seed 0] [--database sqlite|postgres] [--blobs folder|s3]
        [--replicas N] [--keys] > attacked.json

Concurrently: requests that schemathesis generates from the server's OpenAPI document, malformed requests
(`tests.benchmarks.malformed_requests`), clients that connect and stay silent, a probe of `/healthz` in a process of its
own, and a valid client whose answers are compared with those before the attack. With `--keys` half of the malformed
requests have a key. Faults are: a status of 500 or more but 503 and 504, a response that the document does not
describe, a traceback in the log, a lost or different answer to the valid client, a 99th percentile of `/healthz` of a
second or more, and memory that grows by a tenth after the first minute (in shorter runs the first third). One JSON
document is printed, which begins with what was given, the faults and a summary; the exit code is 1 for any fault. The
backbone is a tiny random GPT-2, so that both kinds of tasks and all operations are covered.
"""

import argparse
import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]

from continual.backbones.backbone import load_backbone
from registry import add_key
from tests.benchmarks.load import Question, answers, posted, questions, session
from tests.benchmarks.malformed_requests import GARBAGE, Garbage
from tests.benchmarks.mixed import learned
from tests.benchmarks.run_log import quieten, say
from tests.benchmarks.server_process import Served, fill, opened, register, serving
from tests.helpers.databases import empty_database, running_bucket
from tests.helpers.postgres_server import running
from tests.helpers.tiny_models import tiny_model

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
DELIBERATE = {"503", "504"}
PATIENCE = 2.0  # seconds that garbage waits for an answer
ATTACKERS = 8
SILENT = 1200  # clients that say nothing, more than the server keeps connections
SAME = 1e-2  # tolerance of a probability: in bfloat16 it depends on the rest of the batch
GROWTH = 0.1  # of the memory after the warm-up; bodies of 8 MB make the allocator take and give as much
HEALTHY = 1.0  # seconds, the 99th percentile of `/healthz`
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
COUNTED = re.compile(r'continual_requests_total\{path="(.*?)",(?:replica=".*?",)?status="(5\d\d)"\} (\S+)')


@dataclass
class Outcome:
    """The results of an attack.

    Attributes:
        statuses: Statuses of malformed requests, by the request's name.
        asked: Requests of the valid client.
        lost: Requests of the valid client without an answer.
        wrong: Answers to the valid client that differ from before.
        seconds: Seconds of each of its answers.
        memory: Resident MiB of the server by seconds since the start.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @property
    def warm(self) -> float:
        """MiB after the warm-up of a minute, or a third: the median of a tenth of the time."""
        last = self.memory[-1][0]
        start = min(60, last / 3)
        return median(mib for moment, mib in self.memory if start <= moment <= start + last / 10)

    @property
    def growth(self) -> float:
        """Memory growth in MiB from the end of the warm-up to the last tenth."""
        last = self.memory[-1][0]
        return median(mib for moment, mib in self.memory if moment >= 0.9 * last) - self.warm


@contextmanager
def storage(database: str, blobs: str) -> Iterator[dict[str, str]]:
    """Yield the environment variables of an empty registry; a server of databases or blobs runs meanwhile."""
    places = {}
    with ExitStack() as stack:
        if database == "postgres":
            places["CONTINUAL_REGISTRY_URL"] = stack.enter_context(empty_database(stack.enter_context(running())))
        if blobs == "s3":
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it writes a line for every request
            places["CONTINUAL_BLOBS_URL"] = stack.enter_context(running_bucket())
        yield places


def home_of(folder: Path, places: Mapping[str, str]) -> tuple[Path, str]:
    """Create a home with four classification tasks and a generation task; its path and the backbone's."""
    home, name = folder / "home", str(folder / "gpt2")
    home.mkdir()
    model, tokenizer = tiny_model("gpt2")
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    backbone = load_backbone(name, device="cpu")
    fill(home, backbone, [f"task-{number}" for number in range(4)], places=places)
    writer = replace(learned(backbone, "lora", 9), head=None, kind={"name": "generation", "longest": 4})
    with opened(home, places) as registry:
        register(registry, backbone, "writer", writer, kind="generation")
    return home, name


async def attack(port: int, outcome: Outcome, draw: Random, until: float, *, key: str | None) -> None:
    while time.monotonic() < until:
        name = draw.choice([*GARBAGE])
        garbage = GARBAGE[name](draw)
        if key and draw.random() < 0.5:
            line = f"\r\nauthorization: Bearer {key}\r\nhost:".encode()
            garbage = replace(garbage, sent=garbage.sent.replace(b"\r\nhost:", line))
        try:
            statuses = await asyncio.wait_for(sent(port, garbage), PATIENCE + 5)
        except (OSError, TimeoutError) as error:
            statuses = [type(error).__name__]
        outcome.statuses.update(f"{name} {status}" for status in statuses)


async def sent(port: int, garbage: Garbage) -> list[str]:
    """Send a malformed request and return the statuses of all answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        size = -(-len(garbage.sent) // garbage.pieces)
        for offset in range(0, len(garbage.sent), size):
            writer.write(garbage.sent[offset : offset + size])
            await writer.drain()
            if garbage.pieces > 1:
                await asyncio.sleep(0.05)
        if garbage.leaves:
            return ["left"]
        received = await asyncio.wait_for(reader.read(1 << 22), PATIENCE)
        return [status.decode() for status in STATUS.findall(received)] or ["closed"]
    finally:
        writer.transport.abort()


async def silence(port: int, until: float) -> None:
    """Keep clients connected that send half a line."""
    while time.monotonic() < until:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SILENT)]
        for _, writer in connections:
            writer.write(b"POST /v1/predict HT")
        await asyncio.sleep(min(20, max(until - time.monotonic(), 0.1)))
        for _, writer in connections:
            writer.transport.abort()


async def good(
    url: str,
    outcome: Outcome,
    requests: list[Question],
    expected: list[list[dict[str, Any]]],
    *,
    key: str | None,
    until: float,
) -> None:
    async with session(key=key, reuse=False) as client:  # silent clients have idle connections closed
        while time.monotonic() < until:
            number, start = outcome.asked % len(requests), time.monotonic()
            outcome.asked += 1
            try:
                status, body = await posted(client, url, requests[number])
            except (OSError, aiohttp.ClientError) as error:
                outcome.lost.append(repr(error))
                continue
            outcome.seconds.append(time.monotonic() - start)
            if status != 200:
                outcome.lost.append(body.decode())
            else:
                pairs = zip(json.loads(body)["predictions"], expected[number], strict=True)
                outcome.wrong += [pair for pair in pairs if not same(*pair)]
            await asyncio.sleep(0.02)


def same(answer: dict[str, Any], before: dict[str, Any]) -> bool:
    return (answer["task"], answer["label"]) == (before["task"], before["label"]) and abs(
        answer["score"] - before["score"]
    ) < SAME


async def watch(served: Served, outcome: Outcome, until: float) -> None:
    start = time.monotonic()
    while time.monotonic() < until:
        outcome.memory.append((round(time.monotonic() - start, 1), resident(served.process)))
        await asyncio.sleep(1)


def resident(process: psutil.Process) -> float:
    """Return the resident MiB of a server and its replicas, without Ray's own processes."""
    replicas = [child for child in process.children(recursive=True) if "Replica" in " ".join(child.cmdline())]
    return sum(float(member.memory_info().rss) for member in (process, *replicas)) / (1 << 20)


async def at_once(served: Served, seconds: float, seed: int, *, key: str | None) -> Outcome:
    outcome, port = Outcome(), int(served.url.rpartition(":")[2])
    requests = questions([f"task-{number}" for number in range(4)], 64, rows=4, seed=seed)
    expected = await answers(served.url, requests, key=key)
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(good(served.url, outcome, requests, expected, key=key, until=until))
        group.create_task(silence(port, until))
        group.create_task(watch(served, outcome, until))
        for number in range(ATTACKERS):
            group.create_task(attack(port, outcome, Random(seed + number), until, key=key))
    return outcome


def schemathesis(url: str, folder: Path, seconds: float, seed: int, *, key: str | None) -> subprocess.Popen[str]:
    """Start schemathesis for so many seconds; its findings are on its standard output."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json", "--checks", CHECKS]
    options = ["--max-time", str(max(int(seconds), 1)), "--seed", str(seed), "--continue-on-failure", "--no-shrink"]
    options += ["--header", f"authorization: Bearer {key}"] if key else []
    return subprocess.Popen(
        [*command, *options, "--no-color"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def health_probe(url: str, seconds: float) -> subprocess.Popen[str]:
    """Start to ask `/healthz` for so many seconds, with the document of `health_probe` on its standard output."""
    command = [sys.executable, "-m", "tests.benchmarks.health_probe", url.rpartition(":")[2], str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def counted(url: str, *, key: str | None) -> dict[str, float]:
    """Return the server's own counts of 5xx answers, by operation and status."""

    async def metrics() -> str:
        async with session(key=key) as client, client.get(f"{url}/metrics") as response:
            return await response.text()

    counts: dict[str, float] = {}
    for path, status, count in COUNTED.findall(asyncio.run(metrics())):  # of each replica
        counts[f"{path} {status}"] = counts.get(f"{path} {status}", 0) + float(count)
    return counts


def summary_of(outcome: Outcome, health: dict[str, Any]) -> dict[str, Any]:
    """Return the figures to look at first, of the results of an attack and of the health probe."""
    return {
        "malformed": sum(outcome.statuses.values()),
        "statuses": Counter(name.split()[-1] for name in outcome.statuses.elements()),
        "valid": outcome.asked,
        "valid_seconds": {"median": median(outcome.seconds), "most": max(outcome.seconds)},
        "healthz": len(health["seconds"]),
        "healthz_seconds": {"p99": quantiles(health["seconds"], n=100)[98], "most": max(health["seconds"])},
        "memory_MiB": {"warm": round(outcome.warm, 1), "growth": round(outcome.growth, 1)},
    }


def faults_of(document: dict[str, Any]) -> list[str]:
    """Return a description of every fault."""
    failed = [*document["server_faults"], *(name for name in document["statuses"] if name.split()[-1][0] == "5")]
    bad = [name for name in failed if name.split()[-1] not in DELIBERATE]
    memory, p99 = document["summary"]["memory_MiB"], document["summary"]["healthz_seconds"]["p99"]
    faults = {
        f"the server failed: {bad}": bool(bad),
        f"{document['tracebacks']} tracebacks": document["tracebacks"] > 0,
        f"{len(document['lost'])} requests of the good client lost": bool(document["lost"]),
        f"{len(document['wrong'])} answers to the good client wrong": bool(document["wrong"]),
        f"{len(document['health_lost'])} requests of /healthz lost": bool(document["health_lost"]),
        f"the 99th percentile of /healthz is {p99:.2f} s": p99 >= HEALTHY,
        f"the memory grew by {memory['growth']:.0f} MiB": memory["growth"] > GROWTH * memory["warm"],
        "what the document does not describe; see schemathesis": document["schemathesis_exit"] != 0,
    }
    return [text for text, is_so in faults.items() if is_so]


def attacked(folder: Path, places: Mapping[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """Serve from an empty folder, attack, and return the results."""
    home, name = home_of(folder, places)
    key, seconds = None, 60 * given.minutes
    if given.keys:
        with opened(home, places) as registry:
            key = add_key(registry, "benchmark", role="admin")
    options = ["--replicas", str(given.replicas)] if given.replicas else []
    with serving(home, name, options=options, places=places) as served:
        tester = schemathesis(served.url, folder, seconds, given.seed, key=key)
        probe = health_probe(served.url, seconds)
        outcome = asyncio.run(at_once(served, seconds, given.seed, key=key))
        output, _ = tester.communicate()
        say(output)
        health = json.loads(probe.communicate()[0])
        server_faults = counted(served.url, key=key)
    log, fields = served.log.read_text(), {name: value for name, value in vars(outcome).items() if name != "seconds"}
    document = {"summary": summary_of(outcome, health), **fields, "health_lost": health["lost"]}
    document |= {"server_faults": server_faults, "tracebacks": log.count("Traceback"), "log": log[-4000:]}
    return document | {"schemathesis_exit": tester.returncode}


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--blobs", choices=("folder", "s3"), default="folder")
    parser.add_argument("--replicas", type=int, default=0)
    parser.add_argument("--keys", action="store_true", help="have the server require keys")
    given = parser.parse_args()
    quieten()
    with (
        storage(given.database, given.blobs) as places,
        TemporaryDirectory(prefix="continual-attacked-") as folder,
    ):
        document = attacked(Path(folder), places, given)
    faults = faults_of(document)
    print(json.dumps({"given": vars(given), "faults": faults, **document}, indent=1))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
